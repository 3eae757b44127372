import dataclasses
import math

import pytest
import torch
from tiny import started

from hf_posenc.encodings import create

SLOPES = (0.5, 0.3, 0.2, 0.1)


def bias(grape, *states):
    return grape.scores(*states) - create("nope", grape.geometry).scores(*states)


def softplus(x):
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("gate", ["q", "k", "qk"])
def test_scores(geometry, random_qk, gate):
    grape = create("grape_additive", dataclasses.replace(geometry, slopes=SLOPES), gate=gate)
    grape.w.data.normal_()
    q, k, _ = random_qk(geometry, 7)
    pos = torch.stack([torch.randperm(50_000)[:7] for _ in range(2)])  # in any order, with gaps
    found = bias(grape, q, k, pos, pos)
    directions = [None if x is None else (x / x.norm(dim=-1, keepdim=True)).double() for x in (grape.v, grape.u)]
    for b in range(2):
        for h in range(4):
            for i in range(7):
                for j in range(7):
                    met = zip(directions, (q[b, h, i], k[b, h // 2, j]), strict=True)
                    total = sum(softplus(float(d[h] @ x) / math.sqrt(8)) for d, x in met if d is not None)
                    expected = -int(pos[b, i] - pos[b, j]) * SLOPES[h] * softplus(float(grape.w[h])) * total
                    assert found[b, h, i, j].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


AUTHORS = [  # QueryKeyGatedAdditiveBias(4, 8) of model-architectures/GRAPE for query 5; q, k, u, v as below, omega as it starts
    [-2.0964508, -1.8004892, -1.4797845, -1.0914164, -0.6009685, 0.0],
    [-0.5241127, -0.4501223, -0.3699461, -0.2728541, -0.1502421, 0.0],
    [-0.1310282, -0.1125306, -0.0924865, -0.0682135, -0.0375605, 0.0],
    [-0.0327570, -0.0281326, -0.0231216, -0.0170534, -0.0093901, 0.0],
]


def test_equals_the_authors_code(geometry):
    grape = create("grape_additive", dataclasses.replace(geometry, num_kv_heads=4))
    grape.u.data, grape.v.data = torch.full((4, 8), 0.5), torch.arange(1.0, 9.0).expand(4, -1)
    x, pos = torch.linspace(-1, 1, 48).sin().view(1, 1, 6, 8).expand(-1, 4, -1, -1), torch.arange(6)[None]
    torch.testing.assert_close(bias(grape, x, x + 0.5, pos, pos)[0, :, 5], torch.tensor(AUTHORS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gate", ["q", "k", "qk"])
def test_from_alibi_starts_as_alibi_and_learns(gate, geometry, random_qk):
    encoding, logits = started("grape_additive", init="alibi", gate=gate)
    assert encoding.starts_as == "alibi"
    torch.testing.assert_close(logits, started("alibi")[1])
    grape, (q, k, pos) = create("grape_additive", geometry, init="alibi", gate=gate), random_qk(geometry, 6)
    bias(grape, q, k, pos, pos).square().sum().backward()
    assert all((p.grad != 0).all() and p.grad.abs().max() < 1e3 for p in grape.parameters())


def test_far_from_the_start_it_is_as_exact(geometry, random_qk):
    """In half precision too: its columns are sums of numbers that it holds."""
    grape, (q, k, pos) = create("grape_additive", geometry), random_qk(geometry, 9)
    for dtype, close in ((torch.float32, 1e-5), (torch.bfloat16, 1e-3)):
        x, y = q.to(dtype), k.to(dtype)
        near, exact = (bias(grape, z.to(wide), w.to(wide), pos, pos) for z, w, wide in ((x, y, torch.float32), (x, y, torch.float64)))
        torch.testing.assert_close(near.double(), exact, rtol=close, atol=close)
        columns = grape.meet(grape.block(x, y, pos + 100_000, pos + 100_000))
        added = (columns[0][..., 8:].double() @ columns[1].repeat_interleave(2, 1)[..., 8:].double().mT) * 8**-0.5
        torch.testing.assert_close(added, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"gate": "v"}, {"init": "zero"}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("grape_additive", geometry, **options)
