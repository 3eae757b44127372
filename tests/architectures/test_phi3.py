"""Phi-3: partial rotation, and longrope, whose frequencies depend on the length of the text."""

import pytest
import torch
from tiny import NATIVE, tiny_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import hf_posenc
from hf_posenc.patching import patch_of

CLOSE = {"atol": 2e-5, "rtol": 2e-4}
PAIRS = 8


def longrope_model():
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0 + 0.1 * i for i in range(PAIRS)],
        "long_factor": [2.0 + 0.5 * i for i in range(PAIRS)],
        "original_max_position_embeddings": NATIVE,
    }
    return tiny_model("phi3", rope_parameters=rope, max_position_embeddings=4 * NATIVE, original_max_position_embeddings=NATIVE)


@pytest.mark.parametrize("name", ["yarn", "linear", "ntk", "llama3", "rope", "rerope"])
def test_no_rotation_stands_on_one_that_depends_on_the_length(name):
    model = longrope_model()
    keys = [n for n, _ in model.named_modules()]
    options = {k: 2.0 for k in hf_posenc.describe(name).options if k == "factor"}
    with pytest.raises(ValueError, match=r"longrope.*rope_type': 'default'"):
        hf_posenc.patch(model, name, **options)
    assert [n for n, _ in model.named_modules()] == keys


@pytest.mark.parametrize("name", ["alibi", "nope", "t5", "sinusoidal"])
@torch.no_grad()
def test_what_does_not_rotate_replaces_it(name, batch, tmp_path):
    model = longrope_model()
    short, long = batch["input_ids"][1:, :NATIVE], batch["input_ids"][1:]
    stock = [model(x).logits for x in (short, long)]
    hf_posenc.patch(model, name)
    logits = model(long).logits
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(long).logits, logits)
    hf_posenc.unpatch(model)
    for x, before in zip((short, long), stock, strict=True):
        assert torch.equal(model(x).logits, before)


@torch.no_grad()
def test_some_layers_lose_the_native_rotation_exactly(batch):
    """The other layers keep theirs on both sides of the boundary, where it changes."""
    model, reference = longrope_model(), longrope_model()

    def still(attention, args, kwargs):
        cos, sin = kwargs["position_embeddings"]
        return args, kwargs | {"position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}

    hf_posenc.patch(model, "nope", layers=0)
    reference.model.layers[0].self_attn.register_forward_pre_hook(still, with_kwargs=True)
    for length in (NATIVE, NATIVE + 5, NATIVE):
        ids = batch["input_ids"][1:, :length]
        assert torch.equal(model(ids).logits, reference(ids).logits)


@torch.no_grad()
def test_partial_rotation_is_kept(batch):
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    model = tiny_model("phi3", rope_parameters=rope)
    ids = batch["input_ids"][1:, :NATIVE]
    stock = model(ids).logits
    assert patch_of(model).geometry(0).rotary_dim == 8
    assert torch.equal(hf_posenc.patch(model, "rope")(ids).logits, stock)
    assert_close(hf_posenc.patch(model, "rerope", window=1000)(ids).logits, stock, **CLOSE)
    hf_posenc.patch(model, "linear", factor=2.0)
    assert_close(model(ids, position_ids=2 * torch.arange(NATIVE)[None]).logits, stock, **CLOSE)


@torch.no_grad()
def test_schemes_that_the_family_refuses_are_still_saved(batch, tmp_path):
    model = hf_posenc.patch(tiny_model("phi3"), "yarn", factor=4.0)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert hf_posenc.inspect(again).context_length == 4 * NATIVE
