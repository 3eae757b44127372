import math

import torch
from tiny import started
from torch.nn import functional as F

from hf_posenc.encodings import create


def test_scores(geometry, random_qk):
    """Each key-value head turns its keys and queries to positions of its own, between whole ones."""
    torch.manual_seed(0)
    repo, (q, k, pos) = create("repo", geometry, kept=0.25).double(), random_qk(geometry, 7)
    for weight in repo.parameters():
        weight.data.normal_()
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    scores = repo.scores(q, k, pos, pos, state=repo.state(x, pos))
    with torch.no_grad():
        place = 0.25 * pos[..., None] + (F.silu(x @ repo.gate.T) * (x @ repo.content.T)) @ repo.heads.T  # [B,T,G]
    for b in range(2):
        for h in range(4):
            for i in range(7):
                for j in range(7):
                    distance, expected = float(place[b, i, h // 2] - place[b, j, h // 2]), 0.0
                    for n in range(4):
                        angle = distance * 10_000 ** (-n / 4)
                        one = complex(q[b, h, i, n], q[b, h, i, n + 4])
                        other = complex(k[b, h // 2, j, n], k[b, h // 2, j, n + 4])
                        expected += (one * other.conjugate() * complex(math.cos(angle), math.sin(angle))).real
                    assert math.isclose(scores[b, h, i, j].item(), expected / math.sqrt(8), abs_tol=1e-5)


def test_starts_as_the_model_was():
    encoding, logits = started("repo")
    assert encoding.starts_as == "rope"
    torch.testing.assert_close(logits, started("rope")[1])
