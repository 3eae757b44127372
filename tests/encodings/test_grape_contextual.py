import dataclasses
import math

import pytest
import torch
from tiny import started

from hf_posenc.encodings import Geometry, create

# CausalSelfAttention of llama-mha-grape-m-ctx of model-architectures/GRAPE for query 5, with the weights below
AUTHORS = [
    [-0.9567823, -0.4891646, 0.1026236, 0.6542630, 1.0413058, 1.1759814],
    [-0.6461180, -0.3904714, 0.1547036, 0.8059506, 1.2723578, 1.3216640],
    [-0.7273576, -0.3973770, 0.0751647, 0.6014032, 1.0850959, 1.3944924],
    [-0.9300177, -0.6210362, 0.0621385, 0.8800628, 1.5126293, 1.7331686],
]


def wave(*shape):
    return torch.arange(torch.Size(shape).numel()).float().sin().view(shape)


def test_equals_the_authors_code():
    """Theirs turns backwards."""
    grape = create("grape_contextual", dataclasses.replace(Geometry(32, 4, head_dim=8), backwards=True), gate="sigmoid")
    grape.w.data, grape.b.data, grape.log_scale.data = wave(1, 32) * 20, torch.tensor([3.0]), wave(4) / 2
    q, x, pos = wave(1, 6, 4, 8).transpose(1, 2), wave(1, 6, 32).cos(), torch.arange(6)[None]
    scores = grape.scores(q, q + 0.5, pos, pos, state=grape.state(x, pos))
    torch.testing.assert_close(scores[0, :, 5], torch.tensor(AUTHORS), rtol=1e-5, atol=2e-6)


def test_scores(geometry, random_qk):
    """The step of a token is behind it: it counts from the token after it on."""
    torch.manual_seed(0)
    grape, (q, k, pos) = create("grape_contextual", geometry).double(), random_qk(geometry, 6)
    for weight in grape.parameters():
        weight.data.normal_()
    x = 9 * torch.randn(2, 6, 32, dtype=torch.float64)
    scores = grape.scores(q, k, pos, pos, state=grape.state(x, pos)).detach()
    step = [[math.log1p(math.exp(float((grape.w[0] @ t + grape.b).detach()) / 16) * (math.e - 1)) for t in row] for row in x]
    for b in range(2):
        for h in range(4):
            for i in range(6):
                for j in range(i + 1):
                    expected = 0.0
                    for n in range(4):
                        angle = sum(step[b][j:i]) * 10_000 ** (-n / 4) * math.exp(grape.log_scale[n].item())
                        one = complex(q[b, h, i, n], q[b, h, i, n + 4])
                        other = complex(k[b, h // 2, j, n], k[b, h // 2, j, n + 4])
                        expected += (one * other.conjugate() * complex(math.cos(angle), math.sin(angle))).real
                    assert math.isclose(scores[b, h, i, j].item(), expected / math.sqrt(8), abs_tol=1e-6)


@pytest.mark.parametrize("gate, base", [("softplus", "rope"), ("sigmoid", "")])
def test_starts_as_rope(gate, base):
    encoding, logits = started("grape_contextual", gate=gate)
    assert encoding.starts_as == base
    if base:
        torch.testing.assert_close(logits, started(base)[1])


def test_bad_options(geometry):
    with pytest.raises(ValueError, match="gate"):
        create("grape_contextual", geometry, gate="tanh")
