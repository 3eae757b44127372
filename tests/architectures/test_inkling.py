"""Inkling: a bias by distance that depends on the query, in each layer its own, and layers with other heads."""

import pytest
import torch
from families import tiny_model
from torch import nn
from torch.testing import assert_close

import hf_posenc
from hf_posenc.patching import patch_of

CLOSE = {"atol": 2e-6, "rtol": 2e-4}
IDS = torch.tensor([[5, 9, 2, 40, 17, 8, 33, 21, 4, 11]])


def tiny(**changes):
    model = tiny_model("inkling_text", **changes)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.rel_logits_proj.proj.normal_()
    return model


def without_bias(**changes):
    model = tiny(**changes)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.rel_logits_proj.proj.zero_()
    return model


def alibi(heads):
    steps = torch.arange(IDS.shape[1])
    return -(2 ** (-8 * (torch.arange(heads) + 1) / heads))[:, None, None] * (steps[:, None] - steps[None])


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("changes", [{}, {"log_scaling_n_floor": 4}], ids=["plain", "with a temperature"])
@torch.no_grad()
def test_no_positions_and_alibi_are_what_they_say(backend, changes):
    model, bare = tiny(**changes), without_bias(**changes)
    stock = model(IDS).logits
    model.set_attn_implementation(backend)
    wanted = bare(IDS).logits
    assert (wanted - stock).abs().max() > 1e-3
    assert_close(hf_posenc.patch(model, "nope")(IDS).logits, wanted, **CLOSE)
    bias = alibi(patch_of(model).geometry(0).num_heads)
    hidden = torch.ones_like(bias[0]).triu(1).bool()
    bare.set_attn_implementation("eager")
    masks = dict.fromkeys(("full_attention", "sliding_attention"), bias.masked_fill(hidden, torch.finfo(torch.float32).min)[None])
    wanted = bare(IDS, attention_mask=masks | {"linear_attention": None}).logits
    assert_close(hf_posenc.patch(model, "alibi")(IDS).logits, wanted, **CLOSE)
    model.set_attn_implementation("sdpa")
    assert torch.equal(hf_posenc.unpatch(model)(IDS).logits, stock)


class ALiBi(nn.Module):
    """In the place of what computes the bias of one layer."""

    def forward(self, states, queries, keys):
        return alibi(states.shape[2])[None].expand(len(states), -1, -1, -1)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@torch.no_grad()
def test_a_layer_alone_leaves_the_others_their_bias(backend):
    model, other = tiny(), tiny()
    other.model.layers[0].self_attn.rel_logits_proj = ALiBi()
    model.set_attn_implementation(backend)
    assert_close(hf_posenc.patch(model, "alibi", layers=0)(IDS).logits, other(IDS).logits, **CLOSE)


def test_layers_with_a_window_have_other_heads():
    model = tiny(swa_num_key_value_heads=2, swa_num_attention_heads=4)
    record = patch_of(model)
    sizes = {record.architecture.layer_types(model.config)[i]: record.geometry(i) for i in record.attentions}
    assert (sizes["sliding_attention"].num_heads, sizes["sliding_attention"].num_kv_heads) == (4, 2)
    assert sizes["full_attention"].num_heads == model.config.num_attention_heads != 4
    with torch.no_grad():
        assert hf_posenc.patch(model, "alibi", layers="all")(IDS).logits.isfinite().all()
