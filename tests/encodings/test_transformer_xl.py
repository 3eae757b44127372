import dataclasses
import math

import pytest
import torch
from transformers import XLNetConfig
from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetRelativeAttention

from hf_posenc.encodings import create
from hf_posenc.encodings.contextual import transformer_xl


@pytest.fixture
def xl(geometry):
    """With weights large enough to matter."""
    encoding = create("transformer_xl", geometry)
    with torch.no_grad():
        for parameter in encoding.parameters():
            parameter.normal_()
    return encoding


def wave(distance, width):
    angles = [distance * 10_000.0 ** (-2 * k / width) for k in range(width // 2)]
    return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)


@pytest.mark.parametrize("queries", [1, 7])  # the products are taken in either order
def test_scores(xl, random_qk, queries):
    q, k, _ = random_qk(xl.geometry, 9)
    q = q[:, :, :queries]
    q_pos, k_pos = torch.randint(20, 60, (2, queries)), torch.randint(0, 40, (2, 9))  # in any order, with gaps
    scores = xl.scores(q, k, q_pos, k_pos)
    u, v, w = xl.u.double(), xl.v.double(), xl.w.double()
    for b in range(2):
        for h in range(4):
            for i in range(queries):
                for j in range(9):
                    distance = max(int(q_pos[b, i] - k_pos[b, j]), 0)
                    content = (q[b, h, i] + u[h]) @ k[b, h // 2, j]
                    position = (q[b, h, i] + v[h]) @ (w[h] @ wave(distance, 32))
                    torch.testing.assert_close(scores[b, h, i, j], (content + position) / math.sqrt(8), rtol=0, atol=1e-5)


def test_is_the_attention_of_xlnet(geometry):
    geometry = dataclasses.replace(geometry, num_kv_heads=4)
    config = XLNetConfig(vocab_size=5, d_model=32, n_head=4, d_inner=8, n_layer=1, dropout=0.0)
    attention, encoding = XLNetRelativeAttention(config).eval(), create("transformer_xl", geometry)
    for parameter in attention.parameters():
        parameter.data.normal_()
    encoding.u.data, encoding.v.data = attention.r_w_bias.data, attention.r_r_bias.data
    encoding.w.data = attention.r.data.permute(1, 2, 0)
    q, k, pos = torch.randn(2, 4, 11, 8), torch.randn(2, 4, 11, 8), torch.arange(11).expand(2, -1)
    by_time = [x.permute(2, 0, 1, 3) for x in (q, k)]
    waves = XLNetModel(config).relative_positional_encoding(11, 11, 2)
    projected = torch.einsum("ibh,hnd->ibnd", waves, attention.r)
    future = torch.ones(11, 11).triu(1)
    mask = future[:, :, None, None].expand(-1, -1, 2, 4)
    weights = attention.rel_attn_core(*by_time, by_time[1], projected, attn_mask=mask, output_attentions=True)[1]
    ours = encoding.scores(q, k, pos, pos).masked_fill(future.bool(), -torch.inf).softmax(-1)
    torch.testing.assert_close(ours, weights.permute(2, 3, 0, 1), rtol=1e-4, atol=1e-6)


def test_a_row_alone_is_the_row_of_a_block(xl, random_qk):
    q, k, pos = random_qk(xl.geometry, 30)
    whole = xl.scores(q, k, pos, pos)
    torch.testing.assert_close(xl.scores(q[:, :, 20:21], k[:, :, :21], pos[:, 20:21], pos[:, :21]), whole[:, :, 20:21, :21])


def test_angles_are_exact_far_away(xl, random_qk):
    q, k, pos = random_qk(xl.geometry, 3)
    near, far = (xl.scores(q.to(d), k.to(d), pos + 100_000, pos) for d in (torch.float32, torch.float64))
    torch.testing.assert_close(near.double(), far, rtol=0, atol=0.2)
    assert far.std() > 2


def test_every_parameter_learns(xl, random_qk):
    q, k, pos = random_qk(xl.geometry, 6)
    xl.scores(q, k, pos, pos).tril().square().sum().backward()
    assert all(p.grad.isfinite().all() and (p.grad != 0).all() for p in xl.parameters())


def test_scaling_is_that_of_the_model(xl, random_qk):
    q, k, pos = random_qk(xl.geometry, 6)
    torch.testing.assert_close(xl.scores(q, k, pos, pos, 0.5), xl.scores(q, k, pos, pos) * 0.5 * 8**0.5)


def test_odd_width(geometry):
    with pytest.raises(ValueError, match="hidden_size is odd: 33"):
        create("transformer_xl", dataclasses.replace(geometry, hidden_size=33))


@pytest.mark.parametrize("most", [1, transformer_xl.AT_ONCE])
def test_one_query_at_distances_that_nobody_looks_at(xl, random_qk, most, monkeypatch, nothing_at_hand):
    monkeypatch.setattr(transformer_xl, "AT_ONCE", most)  # key by key
    q, k, _ = random_qk(xl.geometry, 9)
    q_pos, k_pos = torch.tensor([[60], [41]]), torch.randint(0, 70, (2, 9))
    alone = xl.context_bias(q[:, :, :1], k, q_pos, k_pos, 0.5)
    torch.testing.assert_close(alone, xl.context_bias(q[:, :, :1], k, q_pos, k_pos, 0.5, reach=61))
    shared = xl.context_bias(q[:, :, :1], k, q_pos[:1], k_pos[:1], 0.5)
    torch.testing.assert_close(shared, xl.context_bias(q[:, :, :1], k, q_pos[:1].expand(2, -1), k_pos[:1].expand(2, -1), 0.5))


@pytest.mark.parametrize("reach", [30, 31, 100])
def test_reach_is_no_more_than_a_bound(xl, random_qk, reach):
    q, k, pos = random_qk(xl.geometry, 30)
    torch.testing.assert_close(xl.context_bias(q, k, pos, pos, 0.5, reach=reach), xl.context_bias(q, k, pos, pos, 0.5))
