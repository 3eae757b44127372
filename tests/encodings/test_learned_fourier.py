import math

import pytest
import torch

from hf_posenc.encodings import create


def test_is_algorithm_1(geometry):
    fourier = create("learned_fourier", geometry, features=6, hidden=3)
    w, w1, b1, w2, b2 = (p.tolist() for p in (fourier.w, fourier.w1, fourier.b1, fourier.w2, fourier.b2))
    x, pos = torch.randn(1, 2, 32, dtype=torch.float64), torch.tensor([[3, 700]])
    out = fourier.embed(x, pos)
    for t in range(2):
        angles = [pos[0, t].item() * f for f in w]
        r = [f(a) / math.sqrt(6) for f in (math.cos, math.sin) for a in angles]
        h = [sum(a * b for a, b in zip(row, r, strict=True)) + b for row, b in zip(w1, b1, strict=True)]
        h = [a * (1 + math.erf(a / math.sqrt(2))) / 2 for a in h]
        expected = [sum(a * b for a, b in zip(row, h, strict=True)) + b for row, b in zip(w2, b2, strict=True)]
        assert (out - x)[0, t].tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("gamma", [3.0, 10.0])
def test_features_are_alike_within_gamma(geometry, gamma):
    torch.manual_seed(0)
    w = create("learned_fourier", geometry, gamma=gamma, features=20_000).w.double()
    for distance in (0, 1, 3, 10, 40):
        alike = (distance * w).cos().mean().item()  # r(s) r(t), but for 1/2
        assert alike == pytest.approx(math.exp(-(distance**2) / (2 * gamma**2)), abs=0.03)


def test_angles_stay_precise_in_half_precision(geometry):
    fourier = create("learned_fourier", geometry).to(torch.bfloat16)
    wide = create("learned_fourier", geometry)
    wide.load_state_dict(fourier.state_dict())
    x, pos = torch.zeros(1, 2, 32), torch.tensor([[4094, 4095]])
    torch.testing.assert_close(fourier.embed(x.bfloat16(), pos), wide.embed(x, pos).bfloat16(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("options", [{"gamma": 0}, {"features": 1}, {"features": 9}, {"hidden": 0}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("learned_fourier", geometry, **options)
