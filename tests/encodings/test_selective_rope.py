import math

import pytest
import torch
from tiny import started

from hf_posenc.encodings import Geometry, create

# SelectiveRoPE(8, 32, 4, phi_proj_rank=3, use_bias=True) of timurcarstensen/selective-rope for query 5, its convolution the identity
AUTHORS = [
    [-1.4245470, -0.8862950, -0.1790909, 0.0074668, 0.4993286, 1.1759814],
    [-0.8078920, -0.5031103, -0.7054367, -0.4442652, 0.5328290, 1.3216639],
    [-0.3312707, -0.7455269, 0.3744269, 0.5097440, 1.1947610, 1.3944924],
    [-0.7251534, -0.6191801, -0.2375611, 0.6210116, 1.5204071, 1.7331686],
]
GATED = [
    [-1.2198272, -1.0436443, -0.7009096, -0.0599694, 0.7296972, 1.1759814],
    [-0.6918540, -1.0133454, -0.9801565, -0.2968881, 0.7141857, 1.3216639],
    [-0.8833226, -0.0870456, -0.2770754, 0.8315063, 1.1822406, 1.3944925],
    [-0.6488069, -0.5974669, -0.0272953, 0.8495353, 1.5799277, 1.7331684],
]


def wave(*shape):
    return torch.arange(torch.Size(shape).numel()).float().sin().view(shape)


@pytest.mark.parametrize("gate, expected", [(False, AUTHORS), (True, GATED)])
def test_equals_the_authors_code(gate, expected):
    selective = create("selective_rope", Geometry(32, 4, head_dim=8, theta=500_000.0), rank=3, gate=gate)
    selective.down.data, selective.up.data, selective.b.data = wave(3, 32), (wave(16, 3) * 2).view(4, 4, 3), wave(4, 4)
    if gate:
        selective.w.data, selective.c.data = wave(4, 32), wave(4)
    q, x, pos = wave(1, 6, 4, 8).transpose(1, 2), wave(1, 6, 32).cos(), torch.arange(6)[None]
    scores = selective.scores(q, q + 0.5, pos, pos, state=selective.state(x, pos))
    torch.testing.assert_close(scores[0, :, 5], torch.tensor(expected), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"gate": True}])
def test_scores(options, geometry, random_qk):
    """Heads that share a key share their angles."""
    torch.manual_seed(0)
    selective, (q, k, pos) = create("selective_rope", geometry, rank=5, **options).double(), random_qk(geometry, 6)
    for weight in selective.parameters():
        weight.data.normal_()
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    scores = selective.scores(q, k, pos, pos, state=selective.state(x, pos)).detach()
    unit = torch.cat([part / part.norm(dim=-1, keepdim=True) for part in x.split(8, -1)], -1)
    for b in range(2):
        for h in range(4):
            step = (unit[b] @ selective.down.T @ selective.up[h // 2].T).detach()  # [T,r/2]
            step = step if selective.b is None else step + selective.b[h // 2].exp().detach()
            if selective.w is not None:
                step = step / (1 + torch.exp(-(unit[b] @ selective.w[h // 2] + selective.c[h // 2]).detach()))[:, None]
            for i in range(6):
                for j in range(i + 1):
                    expected = 0.0
                    for n in range(4):
                        angle = float(step[j + 1 : i + 1, n].sum()) * 10_000 ** (-n / 4)
                        one = complex(q[b, h, i, n], q[b, h, i, n + 4])
                        other = complex(k[b, h // 2, j, n], k[b, h // 2, j, n + 4])
                        expected += (one * other.conjugate() * complex(math.cos(angle), math.sin(angle))).real
                    assert math.isclose(scores[b, h, i, j].item(), expected / math.sqrt(8), abs_tol=1e-6)


@pytest.mark.parametrize("base, options", [("rope", {}), ("nope", {"bias": False, "gate": True})])
def test_starts_as(base, options):
    encoding, logits = started("selective_rope", **options)
    assert encoding.starts_as == base
    torch.testing.assert_close(logits, started(base)[1])


@pytest.mark.parametrize("options", [{"rank": 0}, {"bias": 1}, {"gate": "gla"}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("selective_rope", geometry, **options)


def test_stands_on_the_scaling_of_the_model(yarned, random_qk):
    selective, (q, k, pos) = create("selective_rope", yarned), random_qk(yarned, 9)
    scores = selective.scores(q, k, pos, pos, state=selective.state(torch.randn(2, 9, 32, dtype=torch.float64), pos))
    torch.testing.assert_close(scores, create("rope", yarned).scores(q, k, pos, pos), rtol=1e-5, atol=1e-5)
    assert (selective.starts_as, create("selective_rope", yarned, bias=False).starts_as) == ("rope", "")
