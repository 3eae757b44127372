"""Gemma 3: two thetas, nested in `rope_parameters` by layer type, and a sliding window on most layers."""

import copy
import json
import math

import pytest
import torch
from tiny import NATIVE, tiny_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import hf_posenc
from hf_posenc.patching import patch_of

CLOSE = {"atol": 2e-5, "rtol": 2e-4}
TYPES = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]


def model_with_both():
    rope = {t: {"rope_type": "default", "rope_theta": theta} for t, theta in (("sliding_attention", 1e4), ("full_attention", 1e6))}
    return tiny_model("gemma3_text", num_hidden_layers=4, layer_types=TYPES, rope_parameters=rope)


@torch.no_grad()
def test_each_layer_type_keeps_its_theta(batch):
    model = model_with_both()
    stock = model(**batch).logits
    record = patch_of(model)
    assert [record.geometry(i).theta for i in range(4)] == [1e4, 1e4, 1e6, 1e4]
    hf_posenc.patch(model, "rope", layers="all")
    assert torch.equal(model(**batch).logits, stock)
    assert [e.layers for e in hf_posenc.inspect(model).encodings] == [(0, 1, 3), (2,)]
    hf_posenc.patch(model, "rope", layers=[1, 2])
    assert_close(model(**batch).logits, stock, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_context_extension_is_for_the_full_layers(batch, tmp_path):
    model = model_with_both()
    before = copy.deepcopy(model.config.rope_parameters)
    hf_posenc.patch(model, "linear", factor=4.0)
    report = hf_posenc.inspect(model)
    assert [e.layers for e in report.encodings] == [(2,)] and report.stock_checkpoint
    native = patch_of(model).native
    slot = model.model.rotary_emb.rotary
    assert torch.equal(slot.sliding_attention_inv_freq, native.sliding_attention_inv_freq)
    assert_close(slot.full_attention_inv_freq, native.full_attention_inv_freq / 4)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "gemma3_text" and saved["max_position_embeddings"] == 4 * NATIVE
    assert saved["rope_parameters"]["sliding_attention"] == before["sliding_attention"]
    assert saved["rope_parameters"]["full_attention"] == {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(**batch).logits, model(**batch).logits)
    hf_posenc.unpatch(model)
    assert model.config.rope_parameters == before


@pytest.mark.parametrize("name", ["nope", "alibi"])
@torch.no_grad()
def test_by_default_sliding_layers_are_left_alone(name, batch):
    model, other = model_with_both(), model_with_both()
    hf_posenc.patch(model, name)
    hf_posenc.patch(other, name, layers=[2])
    assert [e.layers for e in hf_posenc.inspect(model).encodings] == [(2,)]
    assert torch.equal(model(**batch).logits, other(**batch).logits)
    assert not torch.allclose(model(**batch).logits, hf_posenc.patch(other, name, layers="all")(**batch).logits)


@torch.no_grad()
def test_one_theta_for_all_still_differs_by_layer_type(batch):
    model = hf_posenc.patch(model_with_both(), "rope", layers="all", theta=777.0)
    slot = model.model.rotary_emb.rotary
    assert torch.equal(slot.sliding_attention_inv_freq, slot.full_attention_inv_freq)
    assert {e["rope_theta"] for e in model.config.rope_parameters.values()} == {777.0}


ENDS = {"beta_fast": 1.0, "beta_slow": 0.1, "truncate": False}
"""Of a ramp that ends between two pairs."""


@torch.no_grad()
def test_a_ramp_whose_ends_are_not_rounded_is_no_stock_checkpoint(batch, tmp_path):
    """Where they are nested by layer type, transformers (5.24) does not see that `truncate` is False."""
    model = hf_posenc.patch(model_with_both(), "yarn", factor=4.0, **ENDS | {"truncate": True})
    assert hf_posenc.inspect(model).stock_checkpoint
    hf_posenc.patch(model, "yarn", factor=4.0, **ENDS)
    assert not hf_posenc.inspect(model).stock_checkpoint
    fast, slow = (8 * math.log(NATIVE / (2 * math.pi * turns), 1e6) for turns in (1.0, 0.1))
    plain, share = 1e6 ** (-1 / 8), (1 - fast) / (slow - fast)  # of the second pair
    inv_freq = model.model.rotary_emb.rotary.full_attention_inv_freq
    assert inv_freq[1].item() == pytest.approx(plain * (1 - share) + plain / 4 * share, rel=1e-5)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(**batch).logits, model(**batch).logits)


@torch.no_grad()
def test_native_frequencies_are_those_that_the_model_turns_by(batch):
    """What transformers makes of its own nested `truncate`, not what that says."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": NATIVE, **ENDS}
    rope = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": yarn}
    model, keep = tiny_model("gemma3_text", rope_parameters=rope, max_position_embeddings=4 * NATIVE), batch["attention_mask"].bool()
    stock = model(**batch).logits[keep]
    hf_posenc.patch(model, "rerope", layers="all", window=1000, log_scaling=False)
    assert_close(model(**batch).logits[keep], stock, **CLOSE)


@torch.no_grad()
def test_rerope_rotates_with_the_theta_of_the_layer(batch):
    """A window that nothing reaches leaves the stock model, on layers of both kinds."""
    model = model_with_both()
    ids = batch["input_ids"][1:, :NATIVE]
    stock = model(ids).logits
    hf_posenc.patch(model, "rerope", layers="all", window=1000)
    assert_close(model(ids).logits, stock, **CLOSE)
