"""GPT-OSS: YaRN from birth, attention sinks, and every second layer with a sliding window."""

import pytest
import torch
from tiny import NATIVE, tiny_model
from torch.testing import assert_close

import hf_posenc
from hf_posenc.patching import patch_of

CLOSE = {"atol": 2e-5, "rtol": 2e-4}


def yarn_model():
    rope = {"rope_type": "yarn", "rope_theta": 150_000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
    rope["original_max_position_embeddings"] = NATIVE
    return tiny_model("gpt_oss", rope_parameters=rope, max_position_embeddings=4 * NATIVE)


@pytest.mark.parametrize("name", ["yarn", "ntk", "llama3"])
def test_yarn_is_not_scaled_again(name):
    with pytest.raises(ValueError, match=r"already scales its RoPE \('yarn'\)"):
        hf_posenc.patch(yarn_model(), name, factor=2.0)


@torch.no_grad()
def test_native_yarn_is_what_rope_and_rerope_stand_on(batch):
    model = yarn_model()
    stock = model(**batch).logits
    geometry = patch_of(model).geometry(0)
    assert geometry.rope_type == "yarn" and geometry.attention_factor > 1
    assert torch.equal(hf_posenc.patch(model, "rope", layers="all")(**batch).logits, stock)
    keep = batch["attention_mask"].bool()
    hf_posenc.patch(model, "rerope", layers="all", window=1000, log_scaling=False)
    assert_close(model(**batch).logits[keep], stock[keep], **CLOSE)
    assert torch.equal(hf_posenc.unpatch(model)(**batch).logits, stock)


@torch.no_grad()
def test_by_default_sliding_layers_keep_their_rotation(batch):
    model = hf_posenc.patch(yarn_model(), "alibi")
    assert [e.layers for e in hf_posenc.inspect(model).encodings] == [(1,)]
    other = hf_posenc.patch(hf_posenc.patch(yarn_model(), "rope", layers=0), "alibi", layers=1)
    assert_close(model(**batch).logits, other(**batch).logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["alibi", "rerope", "nope", "t5"])
@torch.no_grad()
def test_sinks_take_their_share(name, batch):
    """Very high sinks swallow all attention, very low ones none: they reach the softmax under every encoding."""
    ids = batch["input_ids"][1:]
    model = hf_posenc.patch(yarn_model(), name, layers="all")
    shares = {}
    for level in (-50.0, 0.0, 50.0):
        for layer in model.model.layers:
            layer.self_attn.sinks.fill_(level)
        weights = model(ids, output_attentions=True).attentions
        shares[level] = torch.stack([w.sum(-1) for w in weights])
    assert_close(shares[-50.0], torch.ones_like(shares[0.0]))
    assert (shares[50.0] < 1e-4).all()
    assert (shares[0.0] < 1).all() and (shares[0.0] > 0).all()
