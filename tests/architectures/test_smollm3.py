"""SmolLM3: every fourth layer has no positions by design."""

import pytest
import torch
from tiny import NATIVE, tiny_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import hf_posenc
from hf_posenc.patching import patch_of

CLOSE = {"atol": 2e-5, "rtol": 2e-4}
NO_ROPE = [1, 1, 1, 0]


def model_of_four(**changes):
    return tiny_model("smollm3", num_hidden_layers=4, no_rope_layers=NO_ROPE, **changes)


@pytest.mark.parametrize("name", ["alibi", "yarn", "rope"])
def test_by_default_layers_without_positions_stay_so(name):
    options = {"factor": 4.0} if name == "yarn" else {}
    model = hf_posenc.patch(model_of_four(), name, **options)
    assert [e.layers for e in hf_posenc.inspect(model).encodings] == [(0, 1, 2)]
    assert "posenc_site" not in vars(model.model.layers[3].self_attn)


@torch.no_grad()
def test_native_extension_is_a_stock_checkpoint(batch, tmp_path):
    model = hf_posenc.patch(model_of_four(), "yarn", factor=4.0)
    assert hf_posenc.inspect(model).stock_checkpoint
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not hf_posenc.inspect(again).encodings
    assert torch.equal(again(**batch).logits, model(**batch).logits)


@torch.no_grad()
def test_a_layer_without_positions_can_be_given_some(batch):
    keep = batch["attention_mask"].bool()
    model = hf_posenc.patch(model_of_four(), "rope", layers="all")
    everywhere = tiny_model("smollm3", num_hidden_layers=4, no_rope_layers=[1, 1, 1, 1])
    everywhere.load_state_dict(model.state_dict())
    assert_close(model(**batch).logits[keep], everywhere(**batch).logits[keep], **CLOSE)
    only = hf_posenc.patch(model_of_four(), "rope", layers=3)
    assert_close(only(**batch).logits[keep], everywhere(**batch).logits[keep], **CLOSE)


@torch.no_grad()
def test_nope_on_a_layer_without_positions_has_no_effect_and_is_refused(batch):
    model = model_of_four()
    stock = model(**batch).logits
    with pytest.raises(ValueError, match="layers 3 have no positions by design: the patch would have no effect"):
        hf_posenc.patch(model, "nope", layers=3)
    assert torch.equal(model(**batch).logits, stock)
    assert not torch.allclose(hf_posenc.patch(model, "nope", layers=[2, 3])(**batch).logits, stock)


@torch.no_grad()
def test_the_mixed_stack_made_from_a_full_one(batch):
    """SmolLM3 is Llama with NoPE on every fourth layer: our patch and the native switch agree."""
    model = tiny_model("smollm3", num_hidden_layers=8, no_rope_layers=[1] * 8)
    reference = tiny_model("smollm3", num_hidden_layers=8, no_rope_layers=NO_ROPE * 2)
    hf_posenc.patch(model, "nope", layers=slice(3, None, 4))
    keep = batch["attention_mask"].bool()
    assert_close(model(**batch).logits[keep], reference(**batch).logits[keep], **CLOSE)
    assert [a.use_rope for a in patch_of(reference).attentions.values()] == [1, 1, 1, 0] * 2
    assert model.config.max_position_embeddings == NATIVE
