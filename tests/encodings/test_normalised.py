import pytest
import torch
from tiny import tiny_model

import hf_posenc
from hf_posenc.encodings import create


@pytest.mark.parametrize("options, last", [({}, 15), ({"max_positions": 101, "scale": 4.0, "channels": 2}, 100), ({"max_positions": 1}, 1)])
def test_adds_the_fraction_of_the_length(geometry, options, last):
    scale, channels = options.get("scale", 1.0), options.get("channels", 1)
    x, pos = torch.randn(1, 3, 32, dtype=torch.float64), torch.tensor([[0, last // 3, last]])
    out = create("normalised", geometry, **options).embed(x, pos)
    for t in range(3):
        expected = [x[0, t, k].item() + (scale * pos[0, t].item() / last if k < channels else 0) for k in range(32)]
        assert out[0, t].tolist() == pytest.approx(expected, rel=1e-12)


@torch.no_grad()
def test_a_longer_text_leaves_the_numbers_of_its_beginning():
    """What t / (text - 1) would not: the total length is frozen."""
    model = hf_posenc.patch(tiny_model("llama"), "normalised")
    ids = torch.arange(3, 15)[None]
    torch.testing.assert_close(model(ids[:, :5]).logits, model(ids).logits[:, :5], rtol=0, atol=2e-5)


def test_past_the_declared_length(geometry):
    with pytest.raises(ValueError, match=r'position 16 lies past the last of 16 positions. Declare more .*"normalised", max_positions=17'):
        create("normalised", geometry).check_positions(16)
    create("normalised", geometry, max_positions=17).check_positions(16)


@pytest.mark.parametrize("options", [{"max_positions": 0}, {"scale": -1}, {"channels": 33}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("normalised", geometry, **options)
