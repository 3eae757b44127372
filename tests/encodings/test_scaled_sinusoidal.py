import math

import pytest
import torch

from hf_posenc.encodings import create


@pytest.mark.parametrize("theta", [10_000.0, 50.0])
def test_sines_and_then_cosines_times_a_learned_number(geometry, theta):
    scaled = create("scaled_sinusoidal", geometry, theta=theta)
    x, pos = torch.randn(1, 2, 32, dtype=torch.float64), torch.tensor([[7, 300]])
    for factor in (32**-0.5, -0.3):  # the first is where x-transformers starts
        added = scaled.embed(x, pos) - x
        for t in range(2):
            angles = [pos[0, t].item() * theta ** (-k / 16) for k in range(16)]
            expected = [factor * f(a) for f in (math.sin, math.cos) for a in angles]
            assert added[0, t].tolist() == pytest.approx(expected, abs=2e-5)
        torch.nn.init.constant_(scaled.factor, -0.3)


def test_the_number_learns(geometry):
    scaled = create("scaled_sinusoidal", geometry)
    x, pos = torch.zeros(1, 5, 32), torch.arange(5)[None]
    scaled.embed(x, pos).square().sum().backward()
    torch.testing.assert_close(scaled.factor.grad, torch.tensor([2 * 32**-0.5 * 5 * 16]))  # d/dc of c^2 times 16 a token
