import math

import torch
from torch.nn import functional as F

from hf_posenc.encodings import create


def by_the_paper(cable, x, q, k, scaling):
    """b_i - b_j with b the running sum of -softplus(w x + b), as squares over all pairs."""
    b = (-F.softplus(x @ cable.w.double().T + cable.b.double())).cumsum(1).transpose(1, 2)
    return q @ k.repeat_interleave(2, 1).mT * scaling + b[..., :, None] - b[..., None, :]


def test_scores(geometry, random_qk):
    """The authors' code is without the division by sqrt(D)."""
    q, k, pos = random_qk(geometry, 9)
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    for scaled, scaling in ((True, 1 / math.sqrt(8)), (False, 1.0)):
        cable = create("cable", geometry, scaled=scaled, init_std=1.0)
        scores = cable.scores(q, k, pos, pos, state=cable.state(x, pos))
        torch.testing.assert_close(scores, by_the_paper(cable, x, q, k, scaling))


def test_is_fox_with_the_gates_turned_round(geometry):
    torch.manual_seed(0)
    cable, fox = create("cable", geometry, init_std=1.0), create("fox", geometry)
    fox.w.data, fox.b.data = -cable.w.data, -cable.b.data
    x, pos = torch.randn(2, 9, 32), torch.arange(9)[None]
    torch.testing.assert_close(cable.state(x, pos), fox.state(x, pos))


def test_starts_as_the_authors_do(geometry):
    cable = create("cable", geometry)
    assert not cable.b.any() and abs(float(cable.w.detach().std()) - 0.02) < 0.005
