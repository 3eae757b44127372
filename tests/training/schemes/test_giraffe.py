import math

import torch
from drawing import draws

from hf_posenc.training import create_scheme


def test_steps_are_uniform_and_the_last_position_is_at_the_length_at_most():
    """Where nothing was shrunk, steps are U(0, 2); where the last position is the length, some sum of steps was larger."""
    length = 50
    found = draws(create_scheme("giraffe"), length, 4000)
    steps = torch.cat((found[:, :1], found.diff()), 1)
    assert (steps > 0).all() and found.max() <= length + 1e-9
    shrunk = (found[:, -1] - length).abs() < 1e-9
    # The sum of 50 steps has mean 50 and deviation sqrt(50 / 3): above 50 half of the time, and else its distance is half a normal one.
    assert abs(shrunk.double().mean() - 0.5) < 0.03
    assert abs((length - found[~shrunk, -1]).mean() / math.sqrt(length / 3) - math.sqrt(2 / math.pi)) < 0.05
    short = draws(create_scheme("giraffe"), 1, 4000)[:, 0]  # min(u, 1): 1 half of the time, and else U(0, 1)
    capped = short > 1 - 1e-9
    assert abs(capped.double().mean() - 0.5) < 0.03 and abs(short[~capped].mean() - 0.5) < 0.03
