"""A patch is shown to work before it is made: what is plugged in wrongly is refused, and the model is as it was."""

import copy

import pytest
import torch
from design import FAMILIES
from tiny import options_for, tiny_config, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Model, LlamaModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.llama.modeling_llama import LlamaAttention

import hf_posenc
from hf_posenc.architectures import ARCHITECTURES, Architecture
from hf_posenc.encodings.base import ENCODINGS
from hf_posenc.encodings.rotary.rope import RoPE
from hf_posenc.patching import proof

IDS = torch.tensor([[5, 9, 2, 40, 17, 8, 33, 21, 4, 11]])


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Each test proves anew."""
    monkeypatch.setattr(proof, "_proven", set())


def refused(model, match, name="alibi", **options):
    """Patching raises, and the model, down to the identity of its configuration and modules, is as before."""
    config, entries = model.config, copy.deepcopy(model.config.to_dict())
    modules, numbers = [id(m) for m in model.modules()], copy.deepcopy(model.state_dict())
    implementation, logits = model.config._attn_implementation, model(IDS).logits
    with pytest.raises(ValueError, match=match):
        hf_posenc.patch(model, name, **options)
    assert model.config is config and model.base_model.config is config
    assert model.config.to_dict() == entries
    assert [id(m) for m in model.modules()] == modules
    assert all(torch.equal(x, numbers[k]) for k, x in model.state_dict().items())
    assert model.config._attn_implementation == implementation
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(IDS).logits, logits)


# Families that look like Llama from outside and are not; each would otherwise patch without an error and compute something else.
UNLIKE_LLAMA = {
    "cohere2": "layer 0 does not turn",  # pairs are interleaved
    "exaone4": "layer 1 does not turn",  # full-attention layers have no rotation
    "phimoe": "still depends on positions",  # its rotary module computes its frequencies anew
    "helium": "layer 0 does not turn",  # interleaved
    "hunyuan_v1_dense": "layer 0 does not turn",  # a norm after the rotation
    "deepseek_v3": "cannot be patched",  # only a part of the head, at its end, is rotated
}


@pytest.mark.parametrize("arch", UNLIKE_LLAMA)
@pytest.mark.parametrize(("name", "options"), [("alibi", {}), ("rerope", {"window": 3}), ("yarn", {"factor": 4.0})])
@torch.no_grad()
def test_a_family_that_is_not_what_it_is_said_to_be(arch, name, options, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES._entries, arch, Architecture())
    sizes = {"head_dim": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 4}
    refused(tiny_model(arch, **(sizes if arch == "deepseek_v3" else {})), UNLIKE_LLAMA[arch], name, **options)


@pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe", "olmo3", "granite"])
@torch.no_grad()
def test_a_family_that_is_what_it_is_said_to_be(arch, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES._entries, arch, Architecture())
    for name, options in [("alibi", {}), ("rerope", {"window": 3}), ("yarn", {"factor": 4.0})]:
        hf_posenc.patch(tiny_model(arch), name, **options)


class NeverAsked(Architecture):
    attention = "mlp"


class SaidToHaveNoRotation(Architecture):
    def uses_slot(self, attention):
        return attention.layer_idx != 1


class WrongPairs(Architecture):
    interleaved = True


@pytest.mark.parametrize(
    ("architecture", "match"),
    [(NeverAsked(), "attention of layer 0 never reaches"), (SaidToHaveNoRotation(), "layer 1"), (WrongPairs(), "layer 0 does not turn")],
)
@torch.no_grad()
def test_a_wrong_description_of_llama(architecture, match, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES._entries, "llama", architecture)
    refused(tiny_model("llama"), match)


@torch.no_grad()
def test_one_model_that_another_tool_has_changed():
    """The class is sound, so only the model itself can show it: a rotary module that pays no heed to its frequencies."""
    model = tiny_model("llama")
    kind = type(model.model.rotary_emb)

    class Stubborn(kind):
        def forward(self, x, position_ids):
            self.inv_freq = torch.full_like(self.inv_freq, 0.3)
            return super().forward(x, position_ids)

    model.model.rotary_emb.__class__ = Stubborn
    refused(model, "depends on positions|does not turn")
    hf_posenc.patch(tiny_model("llama"), "alibi")


class LooksAhead(LlamaAttention):
    """Does without the mask that it is given."""

    def forward(self, *args, attention_mask=None, **kwargs):
        return super().forward(*args, attention_mask=None, **kwargs)


class LooksAheadToo(GPT2Attention):
    def forward(self, *args, attention_mask=None, **kwargs):
        return super().forward(*args, attention_mask=None, **kwargs)


class Deaf(nn.Embedding):
    """A position table that nothing comes of."""

    def forward(self, positions):
        return super().forward(positions) * 0


def family_with(base, change):
    """A class like `base`, whose instances `change` has been made to: its twin is made in the same way."""

    class Unlike(base):
        def __init__(self, config):
            super().__init__(config)
            change(self)

    return Unlike(tiny_config(base.config_class.model_type)).eval()


UNLIKE_INSIDE = {
    "another mask": (LlamaModel, lambda m: setattr(m.layers[1].self_attn, "__class__", LooksAhead), "native rotation .* other numbers"),
    "another mask beside a table": (GPT2Model, lambda m: setattr(m.h[0].attn, "__class__", LooksAheadToo), "bias of zero .* other numbers"),
    "a table for nothing": (GPT2Model, lambda m: setattr(m.wpe, "__class__", Deaf), "layer 0 does not react to the position table"),
}


@pytest.mark.parametrize("case", UNLIKE_INSIDE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_family_that_differs_in_what_it_computes(case, dtype):
    """In half precision, only the twin is tried."""
    base, change, match = UNLIKE_INSIDE[case]
    model = family_with(base, change).to(dtype)
    with pytest.raises(ValueError, match=match):
        hf_posenc.patch(model, "alibi")
    assert not hf_posenc.inspect(model).encodings


@torch.no_grad()
def test_an_encoding_whose_slot_and_formula_disagree(monkeypatch):
    class Disagreeing(RoPE):
        """Says one thing to the native slot and does another."""

        def rotate(self, q, k, q_pos, k_pos):
            return super().rotate(q, k, 2 * q_pos, 2 * k_pos)

    Disagreeing.name = "disagreeing"
    monkeypatch.setitem(ENCODINGS._entries, "disagreeing", Disagreeing)
    refused(tiny_model("llama"), "layer 0 does not get 'disagreeing' as asked", "disagreeing")


# -- the twin ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_model_without_weights_is_proven_on_a_twin(arch):
    """At its real size, on the meta device."""
    config = tiny_config(arch, num_hidden_layers=2) if arch == "gemma3_text" else type(tiny_config(arch))()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    hf_posenc.patch(model, "alibi")
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("arch", ["cohere2", "exaone4", "hunyuan_v1_dense"])
def test_a_twin_shows_what_the_model_would(arch, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES._entries, arch, Architecture())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(arch))
    with pytest.raises(ValueError, match="does not turn"):
        hf_posenc.patch(model, "alibi")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    hf_posenc.patch(tiny_model("llama").to(dtype), "yarn", factor=4.0)


@torch.no_grad()
def test_composed_patches_are_proven_together():
    model = hf_posenc.patch(tiny_model("llama", num_hidden_layers=4), "alibi", layers=[0])
    hf_posenc.patch(model, "linear", factor=4.0, layers=[1, 2])
    assert [e.name for e in hf_posenc.inspect(model).encodings] == ["alibi", "linear"]


# -- what it costs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trials(monkeypatch):
    made, real = [], proof._try
    monkeypatch.setattr(proof, "_try", lambda record, requests, family: made.append(family) or real(record, requests, family))
    return made


def test_once_for_each_class_configuration_and_request(trials):
    model = tiny_model("llama")
    for _ in range(3):
        hf_posenc.patch(model, "yarn", factor=4.0)
    hf_posenc.patch(tiny_model("llama", seed=1), "yarn", factor=4.0)
    assert trials == [True]
    hf_posenc.patch(model, "yarn", factor=2.0)
    hf_posenc.patch(tiny_model("llama"), "yarn", layers=[0], factor=4.0)
    assert trials == [True, False, False]
    hf_posenc.patch(tiny_model("llama", num_hidden_layers=3), "yarn", factor=4.0)
    hf_posenc.patch(tiny_model("qwen2"), "yarn", factor=4.0)
    assert trials == [True, False, False, True, True]


@torch.no_grad()
def test_on_request_it_is_left_out(trials, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES._entries, "cohere2", Architecture())
    hf_posenc.patch(tiny_model("cohere2"), "alibi", verify=False)
    with hf_posenc.patched(tiny_model("cohere2"), "alibi", verify=False):
        pass
    assert trials == []


def test_a_loaded_checkpoint_is_proven(trials, tmp_path, monkeypatch):
    hf_posenc.patch(tiny_model("llama"), "alibi").save_pretrained(tmp_path)
    monkeypatch.setattr(proof, "_proven", set())
    monkeypatch.setitem(ARCHITECTURES._entries, "llama", WrongPairs())
    with pytest.raises(ValueError, match="layer 0 does not turn"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert trials == [True, True]


@pytest.mark.parametrize("name", ["kerple", "t5", "shaw", "alibi"])
def test_it_takes_no_random_numbers_and_leaves_nothing(name):
    def patched(verify):
        model = tiny_model("llama").train()
        model.model.layers[1].eval()
        torch.manual_seed(7)
        hf_posenc.patch(model, name, verify=verify, **options_for(name))
        return model, torch.rand(3)

    (model, drawn), (plain, expected) = patched(True), patched(False)
    assert torch.equal(drawn, expected)
    assert all(torch.equal(x, plain.state_dict()[k]) for k, x in model.state_dict().items())
    assert [m.training for m in model.modules()] == [m.training for m in plain.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


@torch.no_grad()
def test_a_class_that_patches_itself():
    """Its twin does the same, and is no stock model when it is built."""

    class Own(LlamaModel):
        def __init__(self, config):
            super().__init__(config)
            hf_posenc.patch(self, "alibi")

    model = Own(tiny_config("llama"))
    assert [e.name for e in hf_posenc.inspect(model).encodings] == ["alibi"]
    assert not torch.equal(model(IDS)[0], hf_posenc.unpatch(model)(IDS)[0])


@torch.no_grad()
def test_a_class_that_patches_itself_over_a_faint_table():
    """The table of its twin tells positions apart all the same, though it was out of the model when the class had built it."""

    class Own(GPT2Model):
        def __init__(self, config):
            super().__init__(config)
            hf_posenc.patch(self, "rope")

    model = Own(tiny_config("gpt2", initializer_range=1e-10))
    assert [e.name for e in hf_posenc.inspect(model).encodings] == ["rope"]


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_model_that_is_being_built_without_numbers_is_refused(arch, tmp_path):
    """`from_pretrained` builds on the meta device, and fills what the checkpoint does not have with anything."""
    tiny_model(arch).save_pretrained(tmp_path)
    kind = type(tiny_model(arch))

    class Own(kind):
        def __init__(self, config):
            super().__init__(config)
            hf_posenc.patch(self, "alibi")

    with pytest.raises(ValueError, match="patch once the model is there"):
        Own.from_pretrained(tmp_path)
