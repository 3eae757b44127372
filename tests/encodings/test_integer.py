import pytest
import torch

from hf_posenc.encodings import create


@pytest.mark.parametrize("options, eps, channels", [({}, 0.01, 1), ({"eps": 0.5, "channels": 3}, 0.5, 3), ({"channels": 32}, 0.01, 32)])
def test_adds_the_number_of_the_position(geometry, options, eps, channels):
    x, pos = torch.randn(2, 3, 32, dtype=torch.float64), torch.tensor([[0, 1, 2], [7, 300, 70_000]])
    out = create("integer", geometry, **options).embed(x, pos)
    for b in range(2):
        for t in range(3):
            expected = [x[b, t, k].item() + (eps * pos[b, t].item() if k < channels else 0) for k in range(32)]
            assert out[b, t].tolist() == pytest.approx(expected, rel=1e-12)


def test_positions_are_not_rounded_before_they_are_scaled(geometry):
    out = create("integer", geometry, eps=1.0).embed(torch.full((1, 2, 32), -4095, dtype=torch.bfloat16), torch.tensor([[4095, 4096]]))
    assert out.dtype == torch.bfloat16
    assert out[0, :, 0].tolist() == [-1, 0]  # -4095 is -4096 in bfloat16: the sum is exact, a rounded 4095 would give 0


def test_a_layer_norm_takes_away_what_all_dimensions_share(geometry):
    """The pitfall that `channels` is for."""
    x, pos, norm = torch.randn(1, 4, 32), torch.arange(4)[None], torch.nn.LayerNorm(32)
    seen = {n: (norm(create("integer", geometry, channels=n).embed(x, pos)) - norm(x)).abs().max().item() for n in (1, 32)}
    assert seen[32] < 1e-5 and seen[1] > 1e-3


@pytest.mark.parametrize("options", [{"eps": 0}, {"eps": float("nan")}, {"channels": 0}, {"channels": 33}, {"channels": 1.0}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("integer", geometry, **options)
