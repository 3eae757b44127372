import math

import pytest
import torch

from hf_posenc.encodings import create


@pytest.mark.parametrize("gated", [False, True])
def test_is_the_expectation_of_random_features(geometry, random_qk, gated):
    """Those of the paper: noise through the cosines and sines of query and key, summed over many draws."""
    torch.manual_seed(0)
    spe, (q, k, pos) = create("spe", geometry, sines=3, gated=gated).double(), random_qk(geometry, 9)
    scores = spe.scores(q, k, pos, pos).detach()
    f, o, g = spe.freqs[1].detach().sigmoid() / 2, spe.offsets[1].detach(), torch.nn.functional.softplus(spe.gains[1].detach())
    draws, total = 400_000, 0.0
    for d in range(8):
        z = torch.randn(6, draws, dtype=torch.float64) * torch.cat((g[d], g[d]))[:, None] / math.sqrt(6)
        at = [torch.cat(((2 * math.pi * f[d] * t + s).cos(), (2 * math.pi * f[d] * t + s).sin())) @ z for t, s in ((7, o[d]), (2, 0.0))]
        if gated:  # half of each feature's square is noise that query and key share
            shared = torch.randn(draws, dtype=torch.float64)
            at = [(x + shared) / math.sqrt(2) for x in at]
        total += q[1, 3, 7, d].item() * k[1, 1, 2, d].item() * (at[0] * at[1]).mean().item()
    assert scores[1, 3, 7, 2].item() == pytest.approx(total / math.sqrt(8), abs=0.05 if gated else 0.03)


def test_scores(geometry, random_qk):
    torch.manual_seed(0)
    spe, (q, k, pos) = create("spe", geometry).double(), random_qk(geometry, 9)
    scores, (f, o, g) = spe.scores(q, k, pos + 50, pos + 50).detach(), (p[1].tolist() for p in (spe.freqs, spe.offsets, spe.gains))
    expected = 0.0
    for d in range(8):
        waves = [math.log1p(math.exp(g[d][n])) ** 2 * math.cos(math.pi / (1 + math.exp(-f[d][n])) * 5 + o[d][n]) / 10 for n in range(5)]
        expected += q[1, 3, 7, d].item() * k[1, 1, 2, d].item() * sum(waves)
    assert scores[1, 3, 7, 2].item() == pytest.approx(expected / math.sqrt(8), rel=1e-6)
