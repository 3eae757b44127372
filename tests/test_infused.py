"""Encodings of what queries and keys are projected from: the projections are found, whatever they are called, and kept to."""

import copy
import pickle

import pytest
import torch
from families import causal_types
from families import tiny_model as any_model
from tiny import tiny_model
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

import hf_posenc
from hf_posenc.attention.infused import Columns, InfusedProjection
from hf_posenc.patching import patch_of, placing, projections, proof

CLOSE = {"atol": 2e-5, "rtol": 2e-4}
IDS = torch.arange(3, 17).view(2, 7)
PAIR = ["q_proj", "k_proj"]


def found_in(model):
    return {i: own for placement in patch_of(model).placements for i, own in placement.projections.items()}


def known(families):
    """Those of `families` that this transformers has."""
    return sorted(set(families) & set(causal_types()))


def hooks_in(model):
    return [m for m in model.modules() for hook in (*m._forward_pre_hooks.values(), *m._forward_hooks.values()) if hook]


@pytest.fixture
def forgotten(monkeypatch):
    monkeypatch.setattr(projections, "_found", {})
    monkeypatch.setattr(proof, "_proven", set())


# -- columns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen, lengths", [("1111", (1,)), ("1100", (2, 2)), ("0110", (0, 1, 2, 1)), ("110110", (2, 1)), ("1010", (1, 1)), ("0111", (0, 1, 3))]
)
def test_columns_are_picked(chosen, lengths):
    columns = Columns.of([c == "1" for c in chosen])
    assert columns.lengths == lengths and columns.are_all == ("0" not in chosen)
    a, b = torch.randn(2, 3, len(chosen)), torch.randn(2, 3, len(chosen))
    assert torch.equal(columns.pick(a, b), torch.where(torch.tensor([c == "1" for c in chosen]), a, b))


# What the columns of a joined projection become, as the source of each family says: of column c, with heads of width d.
JOINED = {
    "gpt2": ("c_attn", lambda c, d, total: c < 2 * total // 3),
    "gpt_bigcode": ("c_attn", lambda c, d, total: c < total - d),
    "openai-gpt": ("c_attn", lambda c, d, total: c < 2 * total // 3),
    "mpt": ("Wqkv", lambda c, d, total: c < 2 * total // 3),
    "falcon": ("query_key_value", lambda c, d, total: c < total - d),
    "bloom": ("query_key_value", lambda c, d, total: c // d % 3 < 2),
    "gpt_neox": ("query_key_value", lambda c, d, total: c // d % 3 < 2),
    "gpt_neox_japanese": ("query_key_value", lambda c, d, total: c // d % 3 < 2),
    "persimmon": ("query_key_value", lambda c, d, total: c // d % 3 < 2),
    "codegen": ("qkv_proj", lambda c, d, total: c // (total // 12) % 3 != 1),
    "qwen3_next": ("q_proj", lambda c, d, total: c // d % 2 == 0),
}


@pytest.mark.parametrize("family", known(JOINED))
def test_columns_of_joined_projections(family):
    """Those of a gate beside the queries (qwen3_next) are left alone."""
    model = hf_posenc.patch(any_model(family), "pia", verify=False)
    path, becomes = JOINED[family]
    for i, own in found_in(model).items():
        projection, width = patch_of(model).attentions[i].get_submodule(path), patch_of(model).geometry(i).head_dim
        total = getattr(projection, "out_features", None) or projection.nf
        assert own[path] == Columns.of([becomes(c, width, total) for c in range(total)])


@pytest.mark.parametrize(
    "family, sizes, lengths",
    [
        ("gpt2", {}, (1536, 768)),
        ("falcon", {}, (4608, 64)),
        ("phi3", {"num_key_value_heads": 8}, (3072 + 768, 768)),
        ("bloom", {}, (16, 8)),
    ],
)
def test_columns_at_the_size_of_a_model_without_weights(family, sizes, lengths, forgotten):
    """The twin, which is narrower, says nothing about them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, num_hidden_layers=2, **sizes))
    hf_posenc.patch(model, "pia")
    assert [columns.lengths for own in found_in(model).values() for columns in own.values()] == [lengths] * 2
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    "family, paths", [("llama", PAIR), ("opt", PAIR), ("gemma3_text", PAIR), ("bert", ["query", "key"]), ("ctrl", ["Wq", "Wk"])]
)
def test_projections_of_their_own(family, paths):
    found = found_in(hf_posenc.patch(any_model(family), "pia", layers="all", verify=False))
    assert all(set(own) == set(paths) and all(columns.are_all for columns in own.values()) for own in found.values())


# -- what it computes -------------------------------------------------------------------------------------------------


class Split(torch.nn.Module):
    """In the place of a joined projection: the columns of queries and keys of one input, and the others of another."""

    def __init__(self, projection, chosen, encoding):
        super().__init__()
        self.projection, self.chosen, self.encoding = projection, chosen, encoding

    def forward(self, x):
        infused = self.encoding.infuse(x, torch.arange(x.shape[1])[None])
        return torch.where(self.chosen, self.projection(infused), self.projection(x))


@pytest.mark.parametrize("family", known(JOINED))
@torch.no_grad()
def test_joined_projections_by_a_module_in_their_place(family):
    (path, becomes), model = JOINED[family], any_model(family)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(5, vocabulary, (2, 7), generator=torch.Generator().manual_seed(1))
    logits = hf_posenc.patch(model, "pia", layers="all", verify=False)(ids).logits
    encoding = patch_of(model).placements[0].encoding
    hf_posenc.patch(model, "nope", layers="all", verify=False)
    for i, attention in patch_of(model).attentions.items():
        projection, width = attention.get_submodule(path), patch_of(model).geometry(i).head_dim
        total = getattr(projection, "out_features", None) or projection.nf
        setattr(attention, path, Split(projection, torch.tensor([becomes(c, width, total) for c in range(total)]), encoding))
        if "k_proj" in attention._modules:
            attention.k_proj = Split(attention.k_proj, torch.tensor(True), encoding)
    assert_close(model(ids).logits, logits, **CLOSE)


@torch.no_grad()
def test_layers_of_their_own():
    """Beside another encoding, of which the layer has nothing of this one."""
    model = tiny_model("llama")
    hf_posenc.patch(model, "pia", layers=[0])
    hf_posenc.patch(model, "alibi", layers=[1])
    assert list(found_in(model)) == [0]
    assert not model.model.layers[1].self_attn.q_proj._forward_pre_hooks
    mixed = model(IDS).logits
    hf_posenc.patch(model, "nope", layers=[0])
    assert not torch.allclose(model(IDS).logits, mixed, atol=1e-3)
    assert [e.place for e in hf_posenc.inspect(model).encodings] == ["in the attention function", "with the native encoding switched off"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_copies_and_pickles(family):
    model = hf_posenc.patch(tiny_model(family), "pia")
    logits = model(IDS).logits
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(IDS).logits, logits)
        hf_posenc.patch(again, "nope")
        assert not torch.allclose(again(IDS).logits, logits, atol=1e-3)
    assert torch.equal(model(IDS).logits, logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@torch.no_grad()
def test_taken_out(family):
    model = any_model(family)
    before = model(IDS).logits
    hf_posenc.patch(model, "pia")
    assert hooks_in(model)
    hf_posenc.unpatch(model)
    assert not hooks_in(model) and torch.equal(model(IDS).logits, before)


@torch.no_grad()
def test_with_a_temperature():
    """The temperature multiplies scores of queries that are made of infused input."""
    model = hf_posenc.patch(tiny_model("llama"), "pia", temperature={"name": "yarn_scale", "factor": 40.0})
    hot, placement = model(IDS).logits, patch_of(model).placements[0]
    assert placement.in_attention and set(placement.projections) == {0, 1}
    hf_posenc.patch(model, "pia")
    for layer in model.model.layers:
        layer.self_attn.scaling *= placement.encoding.heat.constant
    assert_close(model(IDS).logits, hot, **CLOSE)


# -- other tools ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family, target", [("llama", ["q_proj", "k_proj", "v_proj"]), ("gpt2", ["c_attn"])])
@pytest.mark.parametrize("first", ["patch", "adapters"])
@torch.no_grad()
def test_adapters_get_what_their_projections_get(family, target, first):
    """So that they can be merged: whether they came before the patch, or after."""
    peft = pytest.importorskip("peft")

    def adapted(model):
        torch.manual_seed(5)
        return peft.get_peft_model(model, peft.LoraConfig(target_modules=target, init_lora_weights=False, task_type="CAUSAL_LM"))

    model = tiny_model(family)
    model = adapted(hf_posenc.patch(model, "pia")) if first == "patch" else hf_posenc.patch(adapted(model), "pia")
    with_adapters, plain = model(IDS).logits, hf_posenc.patch(tiny_model(family), "pia")(IDS).logits
    assert not torch.allclose(with_adapters, plain, atol=1e-2)
    with model.disable_adapter():
        assert_close(model(IDS).logits, plain, **CLOSE)
    merged = model.merge_and_unload()
    assert_close(merged(IDS).logits, with_adapters, atol=1e-4, rtol=1e-3)
    hf_posenc.unpatch(merged)
    assert not hooks_in(merged)


@torch.no_grad()
def test_a_projection_that_is_replaced_while_a_graph_is_made():
    model = hf_posenc.patch(tiny_model("llama"), "pia")
    attention = model.model.layers[0].self_attn
    attention.q_proj = copy.deepcopy(attention.q_proj)
    for hooks in (attention.q_proj._forward_pre_hooks, attention.q_proj._forward_hooks):
        hooks.clear()
    with pytest.raises(RuntimeError, match="q_proj of LlamaAttention has been replaced: call the model once before it is compiled"):
        torch.compile(model, fullgraph=True, backend="eager")(IDS, use_cache=False)
    logits = model(IDS, use_cache=False).logits
    assert_close(hf_posenc.patch(tiny_model("llama"), "pia")(IDS).logits, logits)
    assert_close(torch.compile(model, fullgraph=True, backend="eager")(IDS, use_cache=False).logits, logits, **CLOSE)


# -- what is refused --------------------------------------------------------------------------------------------------


REFUSED = {
    "deepseek_v3": "layer 0 makes keys and values of the same numbers, those of kv_a_proj_with_mqa",
    "jetmoe": "layer 0 makes them of its input by more than modules of its own",
    "electra": "layer 0 is given vectors of width 128, its embeddings have width 64",
    "zaya": "which zaya makes the keys of other tokens of",
}


@pytest.mark.parametrize("family", known(REFUSED))
@torch.no_grad()
def test_refused(family):
    model = any_model(family)
    before, config = model(IDS).logits, copy.deepcopy(model.config.to_dict())
    with pytest.raises(ValueError, match=REFUSED[family]):
        hf_posenc.patch(model, "pia", layers="all")
    assert not hooks_in(model) and not hf_posenc.inspect(model).encodings
    assert model.config.to_dict() == config and torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("wrong", [(1,), (16, 16), (0, 16, 16)])
def test_wrong_columns_are_not_proven(wrong, forgotten, monkeypatch):
    monkeypatch.setattr(placing, "projections_of", lambda record: {i: {"c_attn": Columns(wrong)} for i in record.attentions})
    model = tiny_model("gpt2", n_embd=64, n_head=4)
    with pytest.raises(ValueError, match="layer 0 does not get 'pia' as asked"):
        hf_posenc.patch(model, "pia")
    assert not hooks_in(model)


def test_heads_are_all_alike():
    with pytest.raises(ValueError, match="treats all heads alike in its stage 'infuse'"):
        hf_posenc.patch(tiny_model("llama"), {"pia": {"heads": [0]}, "nope": {}})


def test_looked_for_once(forgotten, monkeypatch):
    made, real = [], projections._find
    monkeypatch.setattr(projections, "_find", lambda *args: made.append(args) or real(*args))
    for seed in range(3):
        hf_posenc.patch(tiny_model("gpt2", seed=seed), "pia", verify=False)
    assert len(made) == 1


@torch.no_grad()
def test_a_class_that_patches_itself(forgotten):
    kind = type(tiny_model("gpt2"))

    class Own(kind):
        def __init__(self, config):
            super().__init__(config)
            hf_posenc.patch(self, "pia")

    model = Own(tiny_model("gpt2").config)
    assert [type(handle) for handle in patch_of(model).handles].count(InfusedProjection) == 2


@torch.inference_mode()
def test_in_inference_mode(forgotten):
    assert hf_posenc.patch(tiny_model("gpt2"), "pia")(IDS).logits.isfinite().all()
