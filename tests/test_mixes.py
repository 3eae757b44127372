"""Encodings by layer: the models of transformers that have such a mix are what a plain one becomes by it; mixes come and go as one."""

import copy

import pytest
import torch
from tiny import tiny_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import hf_posenc
from hf_posenc.finetuning import parse
from hf_posenc.finetuning.model import apply_encoding
from hf_posenc.mixes import MIXES
from hf_posenc.patching import patch_of
from hf_posenc.variants import name_of, own_options, read_plan

CLOSE = {"atol": 2e-5, "rtol": 2e-4}
IDS = torch.arange(3, 40)[None]
HALVES = {"alibi": {"heads": [0, 1]}, "nope": {"heads": [2, 3]}}
MIXED = {
    "rnope": ("rnope", {"interval": 2}),
    "rnope_swa": ("rnope_swa", {"sliding_window": 5, "interval": 2}),
    "swan": ("swan", {"sliding_window": 5, "base": {"name": "yarn", "factor": 2.0}}),
    "irope": ("irope", {"attention_chunk": 5, "floor_scale": 3}),
    "miniwin": ("miniwin", {"window": 5}),
    "mapping": ({"rope": {}, "fire": {"layers": "1::2", "temperature": "ssmax"}}, {}),
    "one name twice": ({"rope:theta=100": {"layers": [0, 1]}, "rope": {"theta": 5000.0, "sliding_window": 6}}, {}),
    "heads": (HALVES, {}),
    "layers and heads": ({"yarn": {"factor": 2.0}, **{name: {**own, "layers": [0, 2]} for name, own in HALVES.items()}}, {}),
}
mixed = pytest.mark.parametrize("which", MIXED)


def layers_of(model):
    return [(e.name, e.layers) for e in hf_posenc.inspect(model).encodings]


def patched(which, arch="llama"):
    types = {"layer_types": ["sliding_attention", "full_attention"] * 2} if arch == "gemma2" else {}
    model = tiny_model(arch, num_hidden_layers=4, **types)
    torch.manual_seed(7)
    name, options = MIXED[which]
    return hf_posenc.patch(model, name, **options)


# -- what they are --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_rnope_is_smollm3():
    theirs, ours = (tiny_model("smollm3", num_hidden_layers=5, no_rope_layers=layers) for layers in ([1, 1, 1, 0, 1], [1] * 5))
    assert not torch.allclose(ours(IDS).logits, theirs(IDS).logits, atol=1e-3)
    hf_posenc.patch(ours, "rnope")
    assert_close(ours(IDS).logits, theirs(IDS).logits, **CLOSE)


@torch.no_grad()
def test_rnope_swa_is_cohere2():
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    theirs = tiny_model("cohere2", num_hidden_layers=4, layer_types=kinds, sliding_window=5)
    ours = tiny_model("cohere2", num_hidden_layers=4, layer_types=kinds[:1] * 4, sliding_window=1000)
    assert not torch.allclose(ours(IDS).logits, theirs(IDS).logits, atol=1e-3)
    hf_posenc.patch(ours, "rnope_swa", sliding_window=5)
    assert_close(ours(IDS).logits, theirs(IDS).logits, **CLOSE)
    hf_posenc.patch(ours, "swan", sliding_window=5, temperature=None)
    assert_close(ours(IDS).logits, theirs(IDS).logits, **CLOSE)
    hf_posenc.patch(ours, "swan", sliding_window=5)
    assert not torch.allclose(ours(IDS).logits, theirs(IDS).logits, atol=1e-3)


@torch.no_grad()
def test_irope_is_llama4():
    config = {"num_hidden_layers": 4, "use_qk_norm": False, "floor_scale": 3}
    theirs = tiny_model("llama4_text", no_rope_layers=[1, 1, 1, 0], attention_chunk_size=5, attn_temperature_tuning=True, **config)
    ours = tiny_model("llama4_text", no_rope_layers=[1] * 4, attention_chunk_size=None, attn_temperature_tuning=False, **config)
    assert not torch.allclose(ours(IDS).logits, theirs(IDS).logits, atol=1e-3)
    hf_posenc.patch(ours, "irope", attention_chunk=5, floor_scale=3)
    assert_close(ours(IDS).logits, theirs(IDS).logits, **CLOSE)


@pytest.mark.parametrize(("layers", "without"), [(4, (3,)), (6, (3, 5)), (8, (3, 7)), (9, (3, 7, 8))])
def test_the_last_layer_of_miniwin_sees_all(layers, without):
    """As `layer_attention_mode` of the author's code says of as many layers."""
    between, every = MIXES["miniwin"](window=5).parts(tuple(range(layers)))
    assert tuple(every["layers"]) == without and every["name"] == "nope" and between == {"name": "periodic_rope", "window": 5}


@pytest.mark.parametrize("name", MIXES)
def test_a_mix_is_described_and_takes_what_it_says(name):
    described = hf_posenc.describe(name)
    assert described.class_ == "mix" and described.documentation and all(f"{option}=" in str(described) for option in described.options)
    model = hf_posenc.patch(tiny_model("llama", num_hidden_layers=4), name, **described.options)
    assert len(layers_of(model)) == 2
    with pytest.raises(ValueError, match=rf"mix '{name}' has no option 'colour'. It takes "):
        hf_posenc.patch(model, name, colour=1)


@torch.no_grad()
def test_a_mapping_is_the_patches_one_by_one():
    one, other = (tiny_model("llama", num_hidden_layers=4) for _ in range(2))
    hf_posenc.patch(one, {"yarn": {"factor": 2.0}, "alibi": {"layers": "::3"}, "nope": {"layers": 1}})
    for name, layers, options in (("yarn", 2, {"factor": 2.0}), ("alibi", [0, 3], {}), ("nope", [1], {})):
        hf_posenc.patch(other, name, layers=layers, **options)
    assert layers_of(one) == layers_of(other) == [("yarn", (2,)), ("alibi", (0, 3)), ("nope", (1,))]
    assert torch.equal(one(IDS).logits, other(IDS).logits)


def test_layers_that_no_part_names_keep_what_they_have():
    model = tiny_model("llama", num_hidden_layers=4)
    hf_posenc.patch(model, {"alibi": {"layers": 0}, "nope": {"layers": 1}})
    assert layers_of(model) == [("alibi", (0,)), ("nope", (1,))] and hf_posenc.inspect(model).without == (1,)
    hf_posenc.patch(model, {"fire": {}, "kerple": {"layers": 3}}, layers="2:")
    assert layers_of(model) == [("alibi", (0,)), ("nope", (1,)), ("fire", (2,)), ("kerple", (3,))]


def test_parts_for_the_same_layers_are_by_head():
    model = tiny_model("llama", num_hidden_layers=4)
    hf_posenc.patch(model, {"rope": {}, **{name: {**own, "layers": "1::2"} for name, own in HALVES.items()}})
    assert layers_of(model) == [("rope", (0, 2)), ("by_head", (1, 3))]
    assert hf_posenc.inspect(model).encodings[1].options == {
        "parts": [{"name": "alibi", "heads": [0, 1]}, {"name": "nope", "heads": [2, 3]}]
    }
    assert patch_of(hf_posenc.patch(model, {"alibi": {"heads": 0}})).placements[0].request.name == "alibi"


@torch.no_grad()
def test_in_a_family_with_a_table_a_mix_may_leave_layers_without():
    """The table goes with any patch, and here all layers say what they have in its place."""
    model = tiny_model("gpt2", num_hidden_layers=4)
    hf_posenc.patch(model, {"rope": {}, "nope": {"layers": "3::4"}})
    assert layers_of(model) == [("rope", (0, 1, 2)), ("nope", (3,))] and model(IDS).logits.isfinite().all()
    with pytest.raises(ValueError, match="'nope' cannot be limited to some of them"):
        hf_posenc.patch(model, {"rope": {"layers": 0}, "nope": {"layers": 3}})


# -- what becomes of them -------------------------------------------------------------------------------------------------


@mixed
@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
@torch.no_grad()
def test_decoding_equals_evaluation(which, arch, batch):
    model, (ids, mask) = patched(which, arch), batch.values()
    full = model(**batch).logits
    seen, cache, parts = 0, None, []
    for n in (9, 1, 4, 1, 1, 1):
        out = model(ids[:, seen : seen + n], attention_mask=mask[:, : seen + n], past_key_values=cache, use_cache=True)
        cache, seen = out.past_key_values, seen + n
        parts.append(out.logits)
    assert_close(torch.cat(parts, 1)[mask.bool()], full[mask.bool()], **CLOSE)
    assert_close(full[0, 5:], model(ids[:1, 5:]).logits[0], **CLOSE)  # padding on the left is invisible


@mixed
@torch.no_grad()
def test_it_is_saved_loaded_copied_and_taken_out(which, batch, tmp_path):
    batch = {key: x[:, 5:] for key, x in batch.items()}
    stock = tiny_model("llama", num_hidden_layers=4)
    model = patched(which)
    logits, report = model(**batch).logits, hf_posenc.inspect(model)
    model.save_pretrained(tmp_path)
    for other in (AutoModelForCausalLM.from_pretrained(tmp_path), copy.deepcopy(model)):
        again = hf_posenc.inspect(other)
        assert torch.equal(other(**batch).logits, logits)
        assert (again.encodings, again.fingerprint) == (report.encodings, report.fingerprint)
    with hf_posenc.patched(model, {"alibi": {}, "nope": {"layers": [0]}}):
        assert layers_of(model) == [("alibi", (1, 2, 3)), ("nope", (0,))]
    assert torch.equal(model(**batch).logits, logits)
    assert torch.equal(hf_posenc.unpatch(model)(**batch).logits, stock(**batch).logits)


@mixed
def test_it_trains(which, batch):
    model = patched(which).train()
    model.gradient_checkpointing_enable()
    model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.any() for n, p in model.named_parameters() if "positional_encoding" in n)


WRONG = {
    "no such layer": ({"rope": {}, "nope": {"layers": [7]}}, {}, "layer 7 does not exist"),
    "twice": ({"rope": {"layers": [0, 1]}, "nope": {"layers": [1]}}, {}, "layers 1 are in several parts"),
    "two rests": ({"rope": {}, "nope": {}}, {}, "'rope' and 'nope' are for the same layers: say which by layers=, or which .* by heads="),
    "none left": ({"rope": {}, "nope": {"layers": "all"}}, {}, "no layers are left for 'rope'"),
    "outside": ({"rope": {}, "nope": {"layers": [0]}}, {"layers": [1, 2]}, "layers 0 are in a part of the mix, but not in layers="),
    "options beside": ({"rope": {}, "nope": {"layers": 0}}, {"theta": 100.0}, "options of a mix belong to its encodings"),
    "unknown": ({"rope": {}, "nop": {"layers": 0}}, {}, "unknown encoding 'nop'"),
    "a part that cannot be": ({"alibi": {}, "yarn": {"layers": 0}}, {}, "takes either factor= or target_length="),
    "an option": ({"rope": {"thta": 1.0}, "nope": {"layers": 0}}, {}, "'rope' has no option 'thta'"),
    "embeddings": ({"learned": {}, "nope": {"layers": 0}}, {}, "reaches every layer"),
    "too few": ("rnope", {"interval": 5}, "changes every layer number 5, and there are 4"),
    "no parts": ("by_layer", {"parts": []}, "parts= is a list of"),
    "no name": ("by_layer", {"parts": [{"layers": 0}]}, "a part of a mix is a name, or"),
    "empty": ({}, {}, "parts= is a list of"),
    "words": ({"rope": {}, "nope": {"layers": "last"}}, {}, "nor indices"),
}


@pytest.mark.parametrize("case", WRONG)
@torch.no_grad()
def test_a_mistake_in_one_part_leaves_the_model_as_it_was(case):
    name, options, message = WRONG[case]
    model = hf_posenc.patch(tiny_model("llama", num_hidden_layers=4), "alibi", layers=[0, 2])
    before, logits = layers_of(model), model(IDS).logits
    with pytest.raises(ValueError, match=message):
        hf_posenc.patch(model, name, **options)
    assert layers_of(model) == before and torch.equal(model(IDS).logits, logits)


def test_adapters_train_what_parts_learn(tmp_path):
    peft = pytest.importorskip("peft")

    def mixed():
        torch.manual_seed(7)
        return hf_posenc.patch(tiny_model("llama", num_hidden_layers=4), {"shaw": {"layers": "::2"}, "rope": {"temperature": "ssmax"}})

    names = hf_posenc.learned_modules(mixed())
    assert names == ["positional_encoding", *(f"positional_encoding_{i}" for i in (1, 2, 3))]
    config = peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=names, task_type="CAUSAL_LM")
    model = peft.get_peft_model(mixed(), config)
    model(IDS, labels=IDS).loss.backward()
    learned = [p for n, p in model.named_parameters() if "positional_encoding" in n and p.requires_grad]
    assert len(learned) == 6 and all(p.grad.any() for p in learned)
    with torch.no_grad():
        for parameter in learned:
            parameter.add_(0.2)
    logits = model(IDS).logits
    model.save_pretrained(tmp_path)
    assert_close(peft.PeftModel.from_pretrained(mixed(), tmp_path)(IDS).logits, logits)


# -- the command line -----------------------------------------------------------------------------------------------------


def test_a_label_joins_encodings_by_plus_signs():
    label = "rope:theta=1e+06,sliding_window=5+nope:layers=3::4,temperature=log_n"
    parts = [{"name": "rope", "theta": 1e6, "sliding_window": 5}, {"name": "nope", "layers": "3::4", "temperature": "log_n"}]
    assert (name_of(label), own_options(label)) == ("by_layer", {"parts": parts})
    assert read_plan([label, "yarn:factor=4,temperature=ssmax", "rnope_swa:sliding_window=5"], flags={"factor": 2.0}) == {
        label: {"parts": parts},
        "yarn:factor=4,temperature=ssmax": {"factor": 4, "temperature": "ssmax"},
        "rnope_swa:sliding_window=5": {"sliding_window": 5},
    }
    with pytest.raises(ValueError, match="'rnope' has no option 'temperature'"):
        read_plan(["rnope:temperature=log_n"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--encoding yarn:factor=2 --option temperature=log_n", [("yarn", (0, 1))]),
        ("--encoding rnope --option interval=2", [("rope", (0,)), ("nope", (1,))]),
        ("--encoding rope+fire:layers=1,temperature=ssmax", [("rope", (0,)), ("fire", (1,))]),
    ],
)
def test_finetune_takes_them(words, expected, tmp_path):
    settings = parse([*words.split(), "--output_dir", str(tmp_path), "--max_steps", "1"])
    model = tiny_model("llama")
    apply_encoding(model, settings)
    assert layers_of(model) == expected


def test_measured_side_by_side(tmp_path):
    model, ids = tiny_model("llama"), torch.arange(3, 27)
    labels = ["rope+nope:layers=1::2", "rnope:interval=2", "yarn:factor=2,temperature=log_n", "alibi:heads=0,2", "stock"]
    found = hf_posenc.perplexity(model, ids, lengths=[24], encodings=labels, journal=tmp_path)
    assert [found[label].encoding for label in labels] == ["by_layer", "rnope", "yarn", "alibi", "stock"]
    assert found[labels[0]].curve == found[labels[1]].curve and len({str(found[label].curve) for label in labels[1:]}) == 4
    saved = type(found[labels[0]]).load(found[labels[0]].save(tmp_path / "result.json"))
    with hf_posenc.patched(model, saved.encoding, **saved.options):
        assert hf_posenc.inspect(model).fingerprint == saved.fingerprint
