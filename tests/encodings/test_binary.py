import pytest
import torch

from hf_posenc.encodings import Geometry, create


@pytest.mark.parametrize("last, digits", [(15, 4), (16, 5), (40_000, 16), (0, 1)])
@pytest.mark.parametrize("signed", [False, True])
def test_adds_the_digits(geometry, last, digits, signed):
    binary = create("binary", geometry, max_positions=last + 1, signed=signed, scale=0.25)
    x, pos = torch.randn(1, 3, 32, dtype=torch.float64), torch.tensor([[0, last // 3, last]])
    out = binary.embed(x, pos)
    for t in range(3):
        text = f"{pos[0, t].item():0{digits}b}"[::-1]
        added = [0.25 * ({"0": -1, "1": 1}[c] if signed else int(c)) for c in text] + [0] * (32 - digits)
        assert out[0, t].tolist() == pytest.approx([a + b for a, b in zip(x[0, t].tolist(), added, strict=True)], rel=1e-12)
    assert binary.embed(x.bfloat16(), pos).dtype == torch.bfloat16


def test_every_position_is_another_vector(geometry):
    vectors = create("binary", geometry, max_positions=1000).embed(torch.zeros(1, 1000, 32), torch.arange(1000)[None])[0]
    assert len({tuple(v) for v in vectors.tolist()}) == 1000


def test_more_digits_than_dimensions():
    with pytest.raises(ValueError, match="max_positions=32 takes 5 binary digits, but hidden_size is 4"):
        create("binary", Geometry(hidden_size=4, num_heads=1), max_positions=32)


@pytest.mark.parametrize("options", [{"max_positions": 0}, {"signed": 1}, {"scale": 0}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("binary", geometry, **options)
