import math

import torch
from tiny import started
from torch.nn import functional as F

from hf_posenc.encodings import create


def test_scores(geometry, random_qk):
    torch.manual_seed(0)
    carope, (q, k, pos) = create("carope", geometry).double(), random_qk(geometry, 7)
    carope.w.data.normal_()
    carope.b.data.normal_()
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    scores = carope.scores(q, k, pos, pos, state=carope.state(x, pos)).detach()
    f = (1 / (F.softplus(x @ carope.w.T + carope.b) + 1)).detach()  # [B,T,G]
    for b in range(2):
        for h in range(4):
            for i in range(7):
                for j in range(i + 1):
                    expected = 0.0
                    for n in range(4):
                        angle = sum(f[b, t, h // 2].item() ** n for t in range(j + 1, i + 1))
                        one = complex(q[b, h, i, n], q[b, h, i, n + 4])
                        other = complex(k[b, h // 2, j, n], k[b, h // 2, j, n + 4])
                        expected += (one * other.conjugate() * complex(math.cos(angle), math.sin(angle))).real
                    assert math.isclose(scores[b, h, i, j].item(), expected / math.sqrt(8), abs_tol=1e-9)


def test_starts_as_rope():
    encoding, logits = started("carope")
    assert encoding.starts_as == "rope"
    torch.testing.assert_close(logits, started("rope")[1])
