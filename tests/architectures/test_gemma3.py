"""Gemma 3: two thetas, nested in `rope_parameters` by layer type, and a sliding window on most layers."""

import copy
import json

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


@torch.no_grad()
def test_rerope_rotates_with_the_theta_of_the_layer(batch):
    """A window that nothing reaches leaves the stock model, on layers of both kinds."""
    model = model_with_both()
    ids = batch["input_ids"][1:, :NATIVE]
    stock = model(ids).logits
    hf_posenc.patch(model, "rerope", layers="all", window=1000)
    assert_close(model(ids).logits, stock, **CLOSE)
