import dataclasses

import pytest
import torch
from transformers import XLNetConfig
from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetRelativeAttention

from hf_posenc.encodings import create


@pytest.mark.parametrize("clamp_len", [-1, 1, 6])
@pytest.mark.parametrize("attn_type", ["bi", "uni"])
def test_is_the_attention_of_xlnet(geometry, clamp_len, attn_type):
    """Its `rel_shift` lines distances up with keys by reshaping, which ours does not."""
    geometry = dataclasses.replace(geometry, num_kv_heads=4)
    sizes = {"vocab_size": 5, "d_model": 32, "n_head": 4, "d_inner": 8, "n_layer": 1, "dropout": 0.0}
    config = XLNetConfig(**sizes, clamp_len=clamp_len, attn_type=attn_type)
    attention = XLNetRelativeAttention(config).eval()
    encoding = create("xlnet", geometry, clamp_len=None if clamp_len < 0 else clamp_len)
    for parameter in attention.parameters():
        parameter.data.normal_()
    encoding.u.data, encoding.v.data = attention.r_w_bias.data, attention.r_r_bias.data
    encoding.w.data = attention.r.data.permute(1, 2, 0)
    q, k, pos = torch.randn(2, 4, 11, 8), torch.randn(2, 4, 11, 8), torch.arange(11).expand(2, -1)
    waves = XLNetModel(config).relative_positional_encoding(11, 11, 2)
    projected = torch.einsum("ibh,hnd->ibnd", waves, attention.r)
    future = torch.ones(11, 11).triu(1)
    by_time = [x.permute(2, 0, 1, 3) for x in (q, k)]
    mask = future[:, :, None, None].expand(-1, -1, 2, 4)
    weights = attention.rel_attn_core(*by_time, by_time[1], projected, attn_mask=mask, output_attentions=True)[1]
    ours = encoding.scores(q, k, pos, pos).masked_fill(future.bool(), -torch.inf).softmax(-1)
    torch.testing.assert_close(ours, weights.permute(2, 3, 0, 1), rtol=1e-4, atol=1e-6)


def test_queries_after_a_cache_see_true_distances(geometry, random_qk):
    """Keys of any number, with the positions that they have."""
    encoding = create("xlnet", geometry, clamp_len=9)
    q, k, pos = random_qk(geometry, 20)
    whole = encoding.scores(q, k, pos, pos)
    for first, last in ((5, 8), (19, 20)):
        part = encoding.scores(q[:, :, first:last], k[:, :, :last], pos[:, first:last], pos[:, :last])
        torch.testing.assert_close(part, whole[:, :, first:last, :last])


def test_clamped_alike_where_nobody_looks_at_distances(geometry, random_qk, nothing_at_hand):
    encoding = create("xlnet", geometry, clamp_len=4)
    q, k, pos = random_qk(geometry, 20)
    alone = encoding.context_bias(q[:, :, -1:], k, pos[:, -1:], pos, 0.5)
    torch.testing.assert_close(alone, encoding.context_bias(q[:, :, -1:], k, pos[:, -1:], pos, 0.5, reach=20))


@pytest.mark.parametrize("clamp_len", [0, -1, 2.0])
def test_bad_options(geometry, clamp_len):
    with pytest.raises(ValueError, match="clamp_len must be an integer of at least 1"):
        create("xlnet", geometry, clamp_len=clamp_len)
    with pytest.raises(ValueError, match="xlnet pairs sines and cosines"):
        create("xlnet", dataclasses.replace(geometry, hidden_size=33))
