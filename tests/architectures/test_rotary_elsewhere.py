"""Families whose rotary module is in an odd place: one for each theta, one in each attention, one that computes its frequencies anew."""

import pytest
import torch
from families import tiny_model
from torch.testing import assert_close

import hf_posenc
from hf_posenc.patching import patch_of

CLOSE = {"atol": 2e-5, "rtol": 2e-4}
IDS = torch.tensor([[5, 9, 2, 40, 17, 8, 33, 21, 4, 11]])


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids, use_cache=False).logits


def rotation_of(model, layer):
    """What the attention of `layer` gets to turn by, [1,Q,r]: the cosine."""
    seen = []
    handle = (
        patch_of(model)
        .attentions[layer]
        .register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["position_embeddings"]), with_kwargs=True)
    )
    model(input_ids=IDS, use_cache=False)
    handle.remove()
    return seen[0] if seen[0] is None else seen[0][0]


# -- one rotary module for each theta -----------------------------------------------------------------------------------


def model_with_two_thetas(model_type="granite_swa"):
    types = ["full_attention", "sliding_attention", "full_attention"]
    return tiny_model(model_type, num_hidden_layers=3, layer_types=types, layer_rope_theta=[1e4, 500.0, 0])


@torch.no_grad()
def test_each_theta_is_stretched_on_its_own():
    model = model_with_two_thetas()
    stock = logits(model)
    assert [patch_of(model).geometry(i).theta for i in (0, 1)] == [1e4, 500.0]
    hf_posenc.patch(model, "linear", factor=4.0, layers=[0, 1])
    assert [e.layers for e in hf_posenc.inspect(model).encodings] == [(0,), (1,)]
    width = patch_of(model).geometry(0).head_dim
    for layer, theta in ((0, 1e4), (1, 500.0)):
        angle = torch.arange(IDS.shape[1])[:, None] / 4 * theta ** (-torch.arange(0, width, 2) / width)
        assert_close(rotation_of(model, layer)[0, :, : width // 2], angle.cos(), atol=1e-5, rtol=1e-5)
    assert rotation_of(model, 2) is None
    assert torch.equal(logits(hf_posenc.unpatch(model)), stock)


@torch.no_grad()
def test_by_default_the_theta_of_sliding_layers_stays():
    model = hf_posenc.patch(model_with_two_thetas(), "linear", factor=4.0)
    assert [e.layers for e in hf_posenc.inspect(model).encodings] == [(0,)]
    assert torch.equal(rotation_of(model, 1), rotation_of(model_with_two_thetas(), 1))


@pytest.mark.parametrize("model_type", ["granite_swa", "granitemoe_swa"])
@torch.no_grad()
def test_one_theta_for_all_makes_a_stock_checkpoint(model_type, tmp_path):
    model = hf_posenc.patch(tiny_model(model_type), "linear", factor=4.0, layers="all")
    assert hf_posenc.inspect(model).stock_checkpoint
    model.save_pretrained(tmp_path)
    assert_close(logits(type(model).from_pretrained(tmp_path)), logits(model), **CLOSE)
    two = hf_posenc.patch(model_with_two_thetas(model_type), "linear", factor=4.0)
    assert not hf_posenc.inspect(two).stock_checkpoint


@torch.no_grad()
def test_layers_of_one_theta_that_differ():
    """One is served by the rotary module of the theta, the other alone."""
    model = tiny_model("granite_swa", num_hidden_layers=2, layer_types=["full_attention"] * 2, layer_rope_theta=[1e4, 1e4])
    stock = logits(model)
    hf_posenc.patch(model, "linear", factor=1.0, layers=[0])
    hf_posenc.patch(model, "rope", layers=[1])
    assert_close(logits(model), stock, **CLOSE)
    hf_posenc.patch(model, "linear", factor=2.0, layers=[0])
    assert not torch.equal(rotation_of(model, 0), rotation_of(model, 1))


# -- one in each attention ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["moshi", "recurrent_gemma"])
@torch.no_grad()
def test_each_attention_has_its_own(model_type):
    model = tiny_model(model_type)
    record = patch_of(model)
    before = {i: attention.rotary_emb for i, attention in record.attentions.items()}
    last = max(before)
    stock = logits(model)
    hf_posenc.patch(model, "linear", factor=4.0, layers=[last])
    for i, attention in record.attentions.items():
        if i == last:
            assert_close(attention.rotary_emb.inv_freq, before[i].inv_freq / 4)
        else:
            assert attention.rotary_emb is before[i]
    hf_posenc.unpatch(model)
    assert all(attention.rotary_emb is before[i] for i, attention in record.attentions.items())
    assert torch.equal(logits(model), stock)


@torch.no_grad()
def test_generation_where_the_state_is_kept_apart():
    """The recurrence of the family is in its modules; only `generate` decodes with it."""
    model = hf_posenc.patch(tiny_model("recurrent_gemma"), "alibi")
    text = model.generate(IDS, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert torch.equal(logits(model, text)[:, IDS.shape[1] - 1 : -1].argmax(-1), text[:, IDS.shape[1] :])


# -- one that computes its frequencies anew -------------------------------------------------------------------------------


@torch.no_grad()
def test_frequencies_that_are_computed_at_each_call():
    model = hf_posenc.patch(tiny_model("phimoe"), "linear", factor=4.0, layers=[0])
    width = patch_of(model).geometry(0).head_dim
    frequency = torch.arange(IDS.shape[1])[:, None] * model.config.rope_parameters["rope_theta"] ** (-torch.arange(0, width, 2) / width)
    assert_close(rotation_of(model, 0)[0, :, : width // 2], (frequency / 4).cos(), atol=1e-5, rtol=1e-5)
    assert_close(rotation_of(model, 1)[0, :, : width // 2], frequency.cos(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_factor_that_the_configuration_holds():
    """Phi-3.5-MoE is scaled by LongRoPE, with a factor on cos and sin that is none of its formula."""
    half = patch_of(tiny_model("phimoe")).geometry(0).head_dim // 2
    scale = {"short_factor": [1.0] * half, "long_factor": [2.0] * half, "short_mscale": 1.3, "long_mscale": 1.5}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64, **scale}
    model = tiny_model("phimoe", rope_parameters=rope, max_position_embeddings=256)
    assert patch_of(model).geometry(0).attention_factor == 1.3
    stock = logits(model)
    hf_posenc.patch(model, "alibi")
    assert (rotation_of(model, 0) == 1).all()
    assert torch.equal(logits(hf_posenc.unpatch(model)), stock)


# -- one for two stacks ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_stacks_that_take_turns():
    model = tiny_model("hrm_text")
    assert [name for name, module in model.named_modules() if module in list(patch_of(model).attentions.values())] == [
        "model.L_module.layers.0.self_attn",
        "model.H_module.layers.0.self_attn",
    ]
    low, high = (logits(hf_posenc.patch(tiny_model("hrm_text"), "nope", layers=[i])) for i in (0, 1))
    assert not torch.allclose(low, high) and not torch.allclose(low, logits(model))
