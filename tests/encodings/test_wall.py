import math

import pytest
import torch

from hf_posenc.encodings import Geometry, create
from hf_posenc.encodings.contextual import wall

AUTHORS = [  # weights of query 6 by `naive_wall_attn` of flash-linear-attention, with what is made below
    [3.5645491e-03, 1.3095075e-01, 9.5623342e-04, 4.3241644e-01, 3.2216759e-04, 4.3116385e-01, 6.2605541e-04],
    [9.5131714e-03, 4.5141205e-03, 3.0173608e-03, 2.4253633e-02, 1.7487255e-04, 9.5852572e-01, 1.0281954e-06],
    [1.4608959e-02, 3.3500397e-03, 9.4378805e-03, 1.4612189e-02, 1.0517455e-03, 9.5693642e-01, 2.9027090e-06],
    [4.8714895e-02, 3.4781506e-03, 1.4991994e-01, 1.0649641e-03, 4.3788812e-01, 7.3650928e-04, 3.5819733e-01],
]


def wave(*shape):
    return torch.arange(torch.Size(shape).numel()).float().sin().view(shape)


def test_equals_the_authors_code():
    encoding = create("wall", Geometry(32, 4, num_kv_heads=2, head_dim=8), bias=1.0)
    encoding.w.data = wave(4, 8, 32)
    q, k, x = wave(1, 7, 4, 8).transpose(1, 2) * 3, wave(1, 7, 2, 8).transpose(1, 2) * 2 + 0.5, wave(1, 7, 32).cos()
    pos = torch.arange(7)[None]
    scores = encoding.scores(q, k, pos, pos, state=encoding.state(x, pos))
    torch.testing.assert_close(scores[0, :, 6].softmax(-1), torch.tensor(AUTHORS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize("bias", [2.0, -90.0])
def test_scores(bias, chunk, geometry, random_qk, monkeypatch):
    """One gate after another, whatever the chunks; gates that are all but closed overflow nowhere."""
    monkeypatch.setattr(wall, "CHUNK", chunk)
    torch.manual_seed(0)
    encoding, (q, k, pos) = create("wall", geometry, bias=bias).double(), random_qk(geometry, 9)
    encoding.w.data.normal_()
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    scores = encoding.scores(q, k, pos, pos, state=encoding.state(x, pos)).detach()
    gates = 1 / (1 + torch.exp(-(x[:, None] @ encoding.w.mT + encoding.b[:, None]))).detach()  # [B,H,T,D]
    for b in range(2):
        for h in range(4):
            for i in range(9):
                query = q[b, h, i]
                for j in range(i, -1, -1):
                    assert math.isclose(scores[b, h, i, j].item(), float(query @ k[b, h // 2, j]) / math.sqrt(8), abs_tol=1e-9)
                    query = query * gates[b, h, j]


def test_closed_gates_have_finite_gradients(geometry, random_qk):
    encoding, (q, k, pos) = create("wall", geometry, bias=-90.0), random_qk(geometry, 40)
    q, k = q.float().requires_grad_(), k.float().requires_grad_()
    state = encoding.state(torch.randn(2, 40, 32), pos)
    encoding.scores(q, k, pos, pos, state=state).tril().square().sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, encoding.w, encoding.b))


def test_open_gates_are_no_positions(geometry, random_qk):
    encoding, (q, k, pos) = create("wall", geometry, bias=100.0), random_qk(geometry, 9)
    scores = encoding.scores(q, k, pos, pos, state=encoding.state(torch.randn(2, 9, 32, dtype=torch.float64), pos))
    torch.testing.assert_close(scores.tril(), create("nope", geometry).scores(q, k, pos, pos).tril())
