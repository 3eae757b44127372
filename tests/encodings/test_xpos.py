import dataclasses

import numpy as np
import pytest
import torch
from tiny import tiny_model

import hf_posenc
from hf_posenc.encodings import Geometry, create

AUTHORS = {  # scores of the queries at 0, 3 and 5 of cos(0, 1, 2 ...), from the module of microsoft/torchscale
    512: [
        [-2.54756951, 2.95807552, 2.12425041, -1.53174162, -0.297713369, 3.37371993],
        [1.4512614, 1.36693394, -2.6494596, -3.0204308, 2.36652899, 1.67481089],
        [0.100026332, -1.91996717, 1.16593003, 1.40797961, -2.8044486, -3.1461513],
    ],
    4: [
        [-2.54756951, 3.36012888, 3.23739266, -0.514151216, -0.192628205, 7.07678032],
        [0.908410728, 1.42760611, -2.22592735, -3.0204308, 2.66206408, 2.19868588],
        [-0.10487143, -1.67428732, 0.852454603, 1.48349845, -2.36784816, -3.14615178],
    ],
}


@pytest.mark.parametrize("scale_base", [512, 4])
def test_numbers_of_the_authors_code(scale_base):
    xpos = create("xpos", Geometry(hidden_size=8, num_heads=1, interleaved=True), scale_base=scale_base)
    x, pos = torch.arange(2 * 6 * 8.0).cos().view(2, 1, 1, 6, 8), torch.arange(6)[None]
    scores = xpos.scores(*x, pos, pos, scaling=1.0)
    torch.testing.assert_close(scores[0, 0, [0, 3, 5]], torch.tensor(AUTHORS[scale_base]), rtol=1e-5, atol=1e-5)


def by_pairs(q, k, i, j, frequencies, scale_base, gamma):
    """Score of one query and one key in float64: each term of RoPE times zeta to the power of (i - j) / `scale_base`."""
    n = len(frequencies)
    zeta = (np.arange(n) / n + gamma) / (1 + gamma)
    turned = (q[:n] + 1j * q[n : 2 * n]) * np.conj(k[:n] + 1j * k[n : 2 * n]) * np.exp(1j * (i - j) * frequencies)
    return ((turned.real * zeta ** ((i - j) / scale_base)).sum() + q[2 * n :] @ k[2 * n :]) / len(q) ** 0.5


@pytest.mark.parametrize("rotary_dim, options", [(8, {}), (4, {}), (8, {"scale_base": 3.0, "gamma": 0.1}), (8, {"scale_base": 0.5})])
def test_each_pair_decays_with_the_distance(geometry, random_qk, rotary_dim, options):
    geometry = dataclasses.replace(geometry, rotary_dim=rotary_dim)
    xpos = create("xpos", geometry, **options)
    q, k, pos = random_qk(geometry, 40)
    scores, frequencies = xpos.scores(q, k, pos, pos).numpy(), 10_000.0 ** (-np.arange(0, rotary_dim, 2) / rotary_dim)
    for i, j in zip(*np.tril_indices(40), strict=True):
        expected = by_pairs(q[1, 3, i].numpy(), k[1, 1, j].numpy(), i, j, frequencies, **{"scale_base": 512, "gamma": 0.4} | options)
        assert scores[1, 3, i, j] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scale_base", [512, 4, 0.5])
def test_as_decoded_as_evaluated(geometry, random_qk, scale_base):
    """In one pass with many regions, or one, and query by query; at any position."""
    xpos = create("xpos", geometry, scale_base=scale_base)
    q, k, pos = random_qk(geometry, 60)
    for shift in (0, 5, 100_000):
        full = xpos.scores(q, k, pos + shift, pos + shift).tril()
        torch.testing.assert_close(full, xpos.scores(q, k, pos, pos).tril(), rtol=0, atol=1e-6)
        for n in (1, 2, 17, 60):
            part = xpos.scores(q[:, :, n - 1 : n], k[:, :, :n], pos[:, n - 1 : n] + shift, pos[:, :n] + shift)
            torch.testing.assert_close(full[:, :, n - 1, :n], part[:, :, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype, close", [(torch.float16, 4e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("queries", [1, 5000])
def test_nothing_overflows(dtype, close, queries):
    """Neither far from the beginning, where a factor relative to it or to the middle is beyond any number, nor in half precision."""
    geometry, length = Geometry(hidden_size=8, num_heads=1), 1_000_000
    xpos = create("xpos", geometry)
    torch.manual_seed(0)
    q, pos = torch.randn(1, 1, queries, 8, dtype=torch.float64), length - queries + torch.arange(queries)[None]
    near = torch.cat((torch.tensor([[0, 500_000]]), torch.arange(length - 6000, length, 50)[None]), 1)
    k = torch.randn(1, 1, near.shape[1], 8, dtype=torch.float64)
    exact = xpos.scores(q, k, pos, near)
    seen = (near[:, None] <= pos[:, :, None]).expand_as(exact)
    q, k = q.to(dtype).requires_grad_(), k.to(dtype).requires_grad_()
    scores = xpos.scores(q, k, pos, near)
    assert scores.isfinite().all()
    torch.testing.assert_close(scores[seen].double(), exact[seen], rtol=close, atol=4 * close)
    for grad in torch.autograd.grad(scores.float().masked_fill(~seen, 0).square().sum() / 1e3, (q, k)):
        assert grad.isfinite().all()


def test_factors_are_small():
    for options in ({}, {"scale_base": 7.0}, {"gamma": 1e-6}, {"gamma": 1e6, "scale_base": 1e6}, {"scale_base": 1e-3}):
        xpos = create("xpos", Geometry(hidden_size=8, num_heads=1), **options)
        assert xpos.reach >= 0 and float((-xpos.log_zeta[0] * xpos.reach / xpos.scale_base).exp()) < 16.01
    assert create("xpos", Geometry(hidden_size=8, num_heads=1)).reach == 1133


@torch.no_grad()
def test_a_model_generates_as_it_evaluates():
    model = hf_posenc.patch(tiny_model("llama"), "xpos", scale_base=2.0)
    ids = torch.arange(3, 43)[None]
    cache = model(ids[:, :15], use_cache=True).past_key_values
    parts = [model(ids[:, at : at + n], past_key_values=cache).logits for at, n in ((15, 1), (16, 12), (28, 12))]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits[:, 15:], rtol=1e-4, atol=1e-4)


def test_stands_on_the_models_own_frequencies(yarned, random_qk):
    """With little decay it is the rotation of the model, scaling included."""
    q, k, pos = random_qk(yarned, 9)
    rope, xpos = create("rope", yarned), create("xpos", yarned, scale_base=1e6)
    torch.testing.assert_close(xpos.scores(q, k, pos, pos), rope.scores(q, k, pos, pos), rtol=0, atol=1e-4)
    assert (xpos.frequencies(), xpos.rope_parameters(), xpos.relative) == (None, None, True)


@pytest.mark.parametrize("options", [{"scale_base": 0}, {"scale_base": "512"}, {"gamma": 0.0}, {"gamma": float("nan")}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("xpos", geometry, **options)
