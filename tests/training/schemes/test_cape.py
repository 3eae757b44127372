import math

import torch
from drawing import draws

from hf_posenc.training import create_scheme


def ranks(x, low, high):
    """Largest distance of the distribution of `x` from the uniform one (Kolmogorov and Smirnov), times the root of their number."""
    share = (x.double().sort().values - low) / (high - low)
    steps = torch.arange(len(x) + 1) / len(x)
    return max((share - steps[:-1]).abs().max(), (share - steps[1:]).abs().max()).item() * math.sqrt(len(x))


def test_shift_jitter_and_scale_are_uniform_as_the_formula_has_them():
    """Read back from positions: over a long text, the slope is the scale, and the line through it the shift."""
    length, steps = 3000, torch.arange(3000.0, dtype=torch.float64)
    found = draws(create_scheme("cape", shift=5.0, jitter=0.5, scale=1.4), length, 300)
    centred = steps - steps.mean()
    factor = (found * centred).sum(1) / centred.square().sum()
    shift = found.mean(1) / factor - steps.mean()
    jitter = found / factor[:, None] - steps - shift[:, None]
    assert ranks(factor.log(), -math.log(1.4), math.log(1.4)) < 1.95  # p = 0.001
    assert ranks(shift, -5, 5) < 1.95
    assert ranks(jitter[:, 7:10].flatten(), -0.5, 0.5) < 1.95
    assert abs(torch.corrcoef(torch.stack((factor.log(), shift)))[0, 1]) < 0.2
    assert (found.diff() > 0).all()  # the order of the tokens stays


def test_each_part_can_be_left_out():
    steps = torch.arange(6, dtype=torch.float64)
    moved = draws(create_scheme("cape", shift=3.0, jitter=0, scale=1), 6, 20)
    assert torch.allclose(moved - moved[:, :1], steps) and moved[:, 0].unique().numel() == 20 and moved[:, 0].abs().max() <= 3
    stretched = draws(create_scheme("cape", shift=0, jitter=0, scale=1.5), 6, 20)
    assert torch.allclose(stretched, steps * stretched[:, 1:2]) and (stretched[:, 1] <= 1.5).all() and (stretched[:, 1] >= 1 / 1.5).all()
    jittered = draws(create_scheme("cape", shift=0, jitter=0.25, scale=1), 6, 20) - steps
    assert jittered.abs().max() <= 0.25 and jittered.unique().numel() == 120
