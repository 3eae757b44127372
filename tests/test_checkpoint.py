"""Saving, loading, training and offloading patched models, through every door that transformers has."""

import copy
import dataclasses
import json
import pickle
import subprocess
import sys

import pytest
import torch
import transformers
from design import FAMILIES
from families import tiny_config as tiny_family_config
from tiny import NATIVE, options_for, tiny_config, tiny_model
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
)

import hf_posenc
from hf_posenc.architectures import ARCHITECTURES
from hf_posenc.patching import patch_of

CLOSE = {"atol": 2e-5, "rtol": 2e-4}
KINDS = ["alibi", "t5", "rerope", "sinusoidal", "learned", "nope", "dynamic_ntk", "yarn"]
"""One encoding for each place and each way of being saved."""
every_kind = pytest.mark.parametrize("name", KINDS)
both_slots = pytest.mark.parametrize("arch", ["llama", "gpt2"])


@pytest.fixture
def ids(batch):
    return batch["input_ids"][1:, :NATIVE]


def trained(arch, name, **changes):
    """A patched model whose learned encodings are not what a seed gives."""
    model = hf_posenc.patch(tiny_model(arch, **changes), name, **options_for(name))
    with torch.no_grad():
        for parameter in patch_of(model).placements[0].encoding.parameters():
            parameter.add_(0.1)
    return model


def same(a, b, ids):
    assert type(a) is type(b)
    assert torch.equal(a(ids)[0], b(ids)[0])
    assert hf_posenc.inspect(a).fingerprint == hf_posenc.inspect(b).fingerprint


# -- through the Auto classes -----------------------------------------------------------------------------------------


@every_kind
@both_slots
@torch.no_grad()
def test_no_key_is_missing_or_unexpected(arch, name, ids, tmp_path):
    model = trained(arch, name)
    model.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    same(again, model, ids)


@every_kind
@both_slots
@torch.no_grad()
def test_dtype_and_attention_can_be_chosen(arch, name, ids, tmp_path):
    model = trained(arch, name)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert hf_posenc.inspect(again).attention == "eager"
    model.set_attn_implementation("eager")
    same(again, model.to(torch.bfloat16), ids)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.float32


@every_kind
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification])
@torch.no_grad()
def test_other_heads(auto, name, ids, tmp_path):
    torch.manual_seed(0)
    model = hf_posenc.patch(auto.from_config(tiny_config("llama")).eval(), name, **options_for(name))
    model.save_pretrained(tmp_path)
    same(auto.from_pretrained(tmp_path), model, ids)


@torch.no_grad()
def test_a_language_model_becomes_a_classifier(ids, tmp_path):
    model = trained("llama", "t5")
    model.save_pretrained(tmp_path)
    options = {"num_labels": 5, "id2label": {i: f"class {i}" for i in range(5)}, "label2id": {f"class {i}": i for i in range(5)}}
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, **options)
    assert classifier.num_labels == 5 and classifier.config.id2label[4] == "class 4"
    assert torch.equal(classifier.model(ids)[0], model.model(ids)[0])
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=7).score.out_features == 7


def test_overrides_of_the_configuration_reach_the_model(tmp_path):
    trained("llama", "alibi").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, use_cache=False, output_hidden_states=True, attention_dropout=0.25)
    assert not model.config.use_cache and model.config.output_hidden_states
    assert model.model.layers[0].self_attn.attention_dropout == 0.25
    assert hf_posenc.inspect(model).encodings[0].name == "alibi"
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.use_cache
    with pytest.raises(TypeError, match="no_such_thing"):
        AutoModelForCausalLM.from_pretrained(tmp_path, no_such_thing=1)


@every_kind
@torch.no_grad()
def test_from_config_gives_a_fresh_model_with_the_encoding(name, ids, tmp_path):
    model = trained("llama", name)
    model.save_pretrained(tmp_path)
    torch.manual_seed(2)
    fresh = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path)).eval()
    if hf_posenc.inspect(model).stock_checkpoint:
        assert hf_posenc.inspect(fresh).fingerprint == hf_posenc.inspect(model).fingerprint
    else:
        assert [e.name for e in hf_posenc.inspect(fresh).encodings] == [name]
    fresh.load_state_dict(model.state_dict())
    same(fresh, model, ids)


def test_a_damaged_configuration_says_so(tmp_path):
    trained("llama", "alibi").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for key in ("base_config", "positional_encoding"):
        path.write_text(json.dumps(config | {key: None}))
        with pytest.raises(ValueError, match="damaged"):
            AutoModelForCausalLM.from_pretrained(tmp_path)
    path.write_text(json.dumps(config | {"positional_encoding": [{"name": "gone", "options": {}, "layers": [0]}]}))
    with pytest.raises(ValueError, match="unknown encoding 'gone'"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


LONGEST = (1 << 24) - 1
ENTRY = {"name": "shaw", "options": {"max_distance": 3}, "layers": [0, 1]}
BAD_ENTRIES = {
    "a field of tomorrow": (ENTRY | {"phase": 1}, "has 'phase', which is unknown here: upgrade hf_posenc"),
    "an option of tomorrow": (ENTRY | {"options": {"max_distances": 3}}, "has no option 'max_distances'"),
    "code for a name": (ENTRY | {"name": "__import__('os').abort()"}, "unknown encoding"),
    "a name that is no name": (ENTRY | {"name": ["shaw"]}, "its 'name' is"),
    "no options": (ENTRY | {"options": None}, "its 'options' is None"),
    "a layer that is not there": (ENTRY | {"layers": [0, 2]}, r"its layers are \[0, 2\], and the model has 0 to 1"),
    "a layer from behind": (ENTRY | {"layers": [-1]}, r"its layers are \[-1\]"),
    "a layer twice": (ENTRY | {"layers": [0, 0]}, r"its layers are \[0, 0\]"),
    "layers in words": (ENTRY | {"layers": "all"}, "its 'layers' is 'all'"),
    "memory": (ENTRY | {"options": {"max_distance": LONGEST}}, "would hold 1,073,741,824 numbers"),
    "memory in a part": (
        ENTRY | {"name": "by_head", "options": {"parts": [{"name": "diet_rel", "max_distance": LONGEST}]}},
        "would hold",
    ),
}


@pytest.mark.parametrize("kind", BAD_ENTRIES)
def test_what_a_file_says_is_looked_at_before_anything_is_built(kind, tmp_path):
    entry, message = BAD_ENTRIES[kind]
    trained("llama", "alibi").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"positional_encoding": [entry]}))
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("format", [2, "1; import os", None])
def test_a_newer_format_is_refused(format, tmp_path):
    trained("llama", "alibi").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["posenc_format"] == 1
    (tmp_path / "config.json").write_text(json.dumps(config | {"posenc_format": format}))
    with pytest.raises(ValueError, match="written by a newer hf_posenc"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_the_models_own_class_refuses_the_checkpoint(tmp_path):
    trained("llama", "alibi").save_pretrained(tmp_path)
    checked = dataclasses.is_dataclass(LlamaConfig)  # else the notice reaches the module that wants a number, which does not repeat it
    with pytest.raises(Exception, match="hf_posenc" if checked else "found element of type str"):
        transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="AutoModelForCTC has no class"):
        transformers.AutoModelForCTC.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["alibi", "t5", "shaw", "learned", "yarn"])
@torch.no_grad()
def test_in_shards_and_with_tied_weights(name, ids, tmp_path):
    model = trained("llama", name, tie_word_embeddings=True)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    stored = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(stored.values())) > 2 and "lm_head.weight" not in stored
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert again.lm_head.weight is again.model.embed_tokens.weight
    same(again, model, ids)


# -- again and again --------------------------------------------------------------------------------------------------


@every_kind
@both_slots
@torch.no_grad()
def test_saving_changes_nothing_and_can_be_repeated(arch, name, ids, tmp_path):
    model = trained(arch, name)
    logits, config = model(ids).logits, copy.deepcopy(model.config.to_dict())
    for folder in ("a", "b"):
        model.save_pretrained(tmp_path / folder)
    entries = {k: v for k, v in config.items() if k not in ("architectures", "dtype")}
    assert {k: v for k, v in model.config.to_dict().items() if k in entries} == entries
    assert torch.equal(model(ids).logits, logits)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in ("a", "b"))
    assert first == second
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "c")
    third = AutoModelForCausalLM.from_pretrained(tmp_path / "c")
    same(third, model, ids)
    assert third.config.to_dict().keys() == again.config.to_dict().keys()


@torch.no_grad()
def test_several_encodings_at_once(ids, tmp_path):
    model = tiny_model("llama", num_hidden_layers=4)
    for name, layers, options in (("t5", [0], {}), ("kerple", [1], {}), ("yarn", [2], {"factor": 4.0})):
        hf_posenc.patch(model, name, layers=layers, **options)
    hf_posenc.patch(model, "alibi", layers=[0])  # the rest moves up
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    same(again, model, ids)
    found = [(e.name, e.layers) for e in hf_posenc.inspect(again).encodings]
    assert found == [("kerple", (1,)), ("yarn", (2,)), ("alibi", (0,))]
    stock = tiny_model("llama", num_hidden_layers=4)
    assert torch.equal(hf_posenc.unpatch(again)(ids).logits, stock(ids).logits)


@every_kind
@torch.no_grad()
def test_unpatch_after_loading_rotary(name, ids, tmp_path):
    trained("llama", name).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    if not hf_posenc.inspect(again).encodings:
        return  # a stock checkpoint: the scheme is the model's own now
    stock = tiny_model("llama")
    assert torch.equal(hf_posenc.unpatch(again)(ids).logits, stock(ids).logits)
    assert list(again.state_dict()) == list(stock.state_dict())
    again.save_pretrained(tmp_path / "stock")
    assert json.loads((tmp_path / "stock" / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("arch", ["gpt2", "opt"])
@pytest.mark.parametrize("name", ["alibi", "rope", "sinusoidal", "nope"])
@torch.no_grad()
def test_unpatch_after_loading_without_the_table(arch, name, ids, tmp_path):
    model = trained(arch, name)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"saved without the model's own position table.*load the original checkpoint"):
            hf_posenc.unpatch(again)
        same(again, model, ids)
    with hf_posenc.patched(again, "kerple"):  # what the table is not needed for still works
        assert not torch.allclose(again(ids).logits, model(ids).logits)
    same(again, model, ids)


@both_slots
@torch.no_grad()
def test_another_encoding_after_loading(arch, ids, tmp_path):
    """The native module was never loaded; what is built on it must not be garbage."""
    trained(arch, "alibi").save_pretrained(tmp_path)
    for name, layers in (("t5", None), ("learned", None), ("yarn", None), ("kerple", 0), ("rope", 1), ("alibi", None)):
        torch.manual_seed(4)
        again = hf_posenc.patch(AutoModelForCausalLM.from_pretrained(tmp_path), name, layers=layers, **options_for(name))
        torch.manual_seed(4)
        expected = hf_posenc.patch(tiny_model(arch), name, layers=layers, **options_for(name))
        if arch == "gpt2" and name == "learned":
            assert again.transformer.wpe.weight.shape == (64, 64) and again(ids).logits.isfinite().all()
        else:
            torch.manual_seed(4)
            for parameter, other in zip(patch_parameters(again), patch_parameters(expected), strict=True):
                parameter.copy_(other)
            assert torch.equal(again(ids).logits, expected(ids).logits)


# -- without this package ---------------------------------------------------------------------------------------------

STOCK = [
    ("llama", "yarn", {"factor": 4.0}),
    ("llama", "yarn", {"target_length": 40, "truncate": False, "beta_fast": 16.0}),
    ("llama", "ntk_by_parts", {"factor": 3.0}),
    ("llama", "linear", {"factor": 4.0}),
    ("llama", "llama3", {"factor": 4.0}),
    ("llama", "ntk", {"factor": 4.0}),
    ("llama", "rope", {"theta": 500_000.0}),
    ("llama", "p_rope", {}),
    ("gpt_neox", "linear", {"factor": 4.0}),
    ("gemma3_text", "linear", {"factor": 4.0, "layers": "all"}),
    ("opt", "learned", {"max_positions": 30}),
]

WITHOUT = """
import sys, torch
from transformers import AutoModelForCausalLM
assert "hf_posenc" not in sys.modules
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    saved = torch.load(folder + "/expected.pt")
    with torch.no_grad():
        logits = model(saved["ids"]).logits
    print(torch.equal(logits, saved["logits"]), model.config.max_position_embeddings == saved["length"])
"""


@pytest.mark.slow
@torch.no_grad()
def test_stock_schemes_load_without_the_package(tmp_path):
    ids, folders = torch.arange(3, 33)[None], []
    for i, (arch, name, options) in enumerate(STOCK):
        model = hf_posenc.patch(tiny_model(arch), name, **options)
        report = hf_posenc.inspect(model)
        assert report.stock_checkpoint, (arch, name)
        logits = model(ids[:, : max(report.context_length, NATIVE)]).logits
        model.save_pretrained(tmp_path / str(i))
        seen = {"ids": ids[:, : logits.shape[1]], "logits": logits, "length": report.context_length}
        torch.save(seen, tmp_path / str(i) / "expected.pt")
        folders.append(str(tmp_path / str(i)))
    run = subprocess.run([sys.executable, "-c", WITHOUT, *folders], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:-1] == ["True True"] * len(STOCK)


@torch.no_grad()
def test_what_a_family_keeps_beside_the_scheme_survives(tmp_path):
    model = tiny_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 77_777.0, "mine": "kept"})
    hf_posenc.patch(model, "yarn", factor=4.0).save_pretrained(tmp_path)
    parameters = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    assert parameters["rope_theta"] == 77_777.0 and parameters["mine"] == "kept"
    assert parameters["rope_type"] == "yarn" and parameters["original_max_position_embeddings"] == NATIVE


# -- training ---------------------------------------------------------------------------------------------------------


def dataset(n=12):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(3, 60, (n, NATIVE), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def trainer(model, folder, steps, **changes):
    from transformers import Trainer, TrainingArguments

    settings = {"learning_rate": 1e-2, "per_device_train_batch_size": 2, "save_steps": 2, "use_cpu": True, "report_to": [], "seed": 1}
    settings |= {"disable_tqdm": True, "gradient_checkpointing": True, "logging_strategy": "no", "lr_scheduler_type": "constant"}
    return Trainer(model, TrainingArguments(str(folder), max_steps=steps, **(settings | changes)), train_dataset=dataset())


@pytest.mark.parametrize(
    ("arch", "name"), [("llama", "alibi"), ("llama", "kerple"), ("gpt2", "learned"), ("llama", "yarn"), ("gpt2", "rerope")]
)
def test_trainer_saves_and_resumes(arch, name, ids, tmp_path):
    model = hf_posenc.patch(
        tiny_model(arch, attention_dropout=0.0, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0), name, **options_for(name)
    )
    start, twin = copy.deepcopy(model), copy.deepcopy(model)
    straight = trainer(model, tmp_path / "straight", 3)
    straight.train()
    straight.save_model(tmp_path / "final")
    model.eval()
    assert not torch.allclose(model(ids).logits, start(ids).logits)
    for before, after in zip(patch_parameters(start), patch_parameters(model), strict=True):
        assert not torch.equal(before, after)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    same(again, model, ids)
    trainer(twin, tmp_path / "halves", 2).train()
    resumed = trainer(start, tmp_path / "halves", 3)
    resumed.train(resume_from_checkpoint=True)
    assert_close(start.eval()(ids).logits, model(ids).logits, **CLOSE)


def patch_parameters(model):
    placement = patch_of(model).placements[0]
    return [model.transformer.wpe.weight] if placement.in_table else list(placement.encoding.parameters())


@every_kind
def test_accelerator(name, ids):
    accelerate = pytest.importorskip("accelerate")
    model = trained("llama", name)
    logits = model(ids).logits
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    assert torch.equal(model(ids).logits, logits)
    accelerator.backward(model(input_ids=ids, labels=ids).loss)
    optimizer.step()
    assert not torch.equal(model(ids).logits, logits)


@torch.no_grad()
def test_accelerator_with_bfloat16(ids, tmp_path, request):
    accelerate = pytest.importorskip("accelerate")
    model = trained("llama", "alibi")
    logits = model(ids).logits
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    request.addfinalizer(lambda: accelerate.state.AcceleratorState._reset_state(reset_partial_state=True))
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(model)
    assert (prepared(ids).logits - logits).std() < 0.1 * logits.std()
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False).save_pretrained(tmp_path)
    same(AutoModelForCausalLM.from_pretrained(tmp_path), trained("llama", "alibi"), ids)


# -- on several devices, or none --------------------------------------------------------------------------------------


@every_kind
@both_slots
@pytest.mark.parametrize("device_map", [{"": "cpu"}, "auto"])
@torch.no_grad()
def test_device_map(arch, name, device_map, ids, tmp_path):
    model = trained(arch, name)
    model.save_pretrained(tmp_path)
    same(AutoModelForCausalLM.from_pretrained(tmp_path, device_map=device_map), model, ids)


@every_kind
@both_slots
@torch.no_grad()
def test_dispatched_before_or_after_the_patch(arch, name, ids):
    accelerate = pytest.importorskip("accelerate")
    model = trained(arch, name)
    logits = model(ids).logits
    after = accelerate.dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    assert torch.equal(after(ids).logits, logits)
    stock = accelerate.dispatch_model(tiny_model(arch), device_map={"": "cpu"}, force_hooks=True)
    first = stock(ids).logits
    hf_posenc.patch(stock, name, **options_for(name))
    if not list(patch_of(stock).placements[0].encoding.parameters()):
        assert torch.equal(stock(ids).logits, logits)
    assert torch.equal(hf_posenc.unpatch(stock)(ids).logits, first)
    assert torch.equal(hf_posenc.unpatch(after)(ids).logits, first)


@every_kind
@both_slots
@torch.no_grad()
def test_some_layers_on_disk(arch, name, ids, tmp_path):
    model = trained(arch, name)
    model.save_pretrained(tmp_path / "model")
    backbone, layers = ("model", "layers") if arch == "llama" else ("transformer", "h")
    device_map = {f"{backbone}.{child}": "cpu" for child, _ in patch_of(model).backbone.named_children()} | {"lm_head": "cpu"}
    del device_map[f"{backbone}.{layers}"]
    device_map |= {f"{backbone}.{layers}.0": "cpu", f"{backbone}.{layers}.1": "disk"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=str(tmp_path / "off"))
    assert next(patch_of(again).attentions[1].parameters()).is_meta
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert hf_posenc.inspect(again).fingerprint == hf_posenc.inspect(model).fingerprint


@every_kind
@both_slots
@torch.no_grad()
def test_offloaded_before_the_patch(arch, name, ids, tmp_path):
    """Everything on disk, embeddings and position table included; the encoding itself stays where it is used."""
    accelerate = pytest.importorskip("accelerate")
    torch.manual_seed(11)
    expected = hf_posenc.patch(tiny_model(arch), name, **options_for(name))
    stock = tiny_model(arch)
    stock.tie_weights()
    offloaded = accelerate.cpu_offload(stock, execution_device=torch.device("cpu"))
    first = offloaded(ids).logits
    hf_posenc.patch(offloaded, name, **options_for(name))
    placement = patch_of(offloaded).placements[0]
    if placement.in_table or not list(placement.encoding.parameters()):
        assert torch.equal(offloaded(ids).logits, expected(ids).logits)
    else:  # drawn at random
        assert offloaded(ids).logits.isfinite().all()
    hf_posenc.inspect(offloaded)
    assert torch.equal(hf_posenc.unpatch(offloaded)(ids).logits, first)


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize(
    ("arch", "name"), [("llama", "t5"), ("llama", "shaw"), ("llama", "lerope"), ("llama", "learned"), ("gpt2", "learned")]
)
@torch.no_grad()
def test_offloaded_after_the_patch(arch, name, offload, ids, tmp_path):
    """What an encoding has learned is offloaded too, and it can be looked at, put aside and taken out all the same."""
    accelerate = pytest.importorskip("accelerate")
    model = trained(arch, name)
    model.tie_weights()
    logits, fingerprint, stock = model(ids).logits, hf_posenc.inspect(model).fingerprint, tiny_model(arch)(ids).logits
    if offload == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in patch_parameters(model))
    assert torch.equal(model(ids).logits, logits) and hf_posenc.inspect(model).fingerprint == fingerprint
    with hf_posenc.patched(model, "nope"):
        assert not torch.allclose(model(ids).logits, logits)
    assert torch.equal(model(ids).logits, logits) and hf_posenc.inspect(model).fingerprint == fingerprint
    assert torch.equal(hf_posenc.unpatch(model)(ids).logits, stock)


# -- pipelines --------------------------------------------------------------------------------------------------------


def tiny_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<s>": 1, "<unk>": 2} | {chr(97 + i): 3 + i for i in range(26)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>")


@pytest.mark.parametrize("name", ["alibi", "yarn", "learned"])
def test_pipeline(name, tmp_path):
    model, tokenizer = trained("llama", name), tiny_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = {"max_new_tokens": 5, "do_sample": False, "return_tensors": True}
    ours = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)("a b c", **settings)
    loaded = transformers.pipeline("text-generation", model=str(tmp_path))("a b c", **settings)
    assert ours[0]["generated_token_ids"] == loaded[0]["generated_token_ids"]


# -- encodings of the user --------------------------------------------------------------------------------------------


@pytest.fixture
def registered():
    """Three encodings that a user might write, registered for one test."""
    from torch import nn

    from hf_posenc.encodings import ENCODINGS

    @hf_posenc.register("my_reflection")
    class MyReflection(hf_posenc.PositionalEncoding):
        """Flips the sign of the first dimensions on odd positions."""

        def __init__(self, geometry, *, dims: int = 4):
            super().__init__(geometry)
            self.dims = dims

        def rotate(self, q, k, q_pos, k_pos):
            return self.flip(q, q_pos), self.flip(k, k_pos)

        def flip(self, x, pos):
            sign = (1 - 2 * (pos % 2))[:, None, :, None].to(x.dtype)
            return torch.cat((x[..., : self.dims] * sign, x[..., self.dims :]), -1)

    @hf_posenc.register("my_bias")
    class MyBias(hf_posenc.PositionalEncoding):
        """A learned slope a head, on the square root of the distance."""

        relative = True

        def __init__(self, geometry):
            super().__init__(geometry)
            self.slope = nn.Parameter(torch.rand(geometry.num_heads))

        def bias(self, h, q_pos, k_pos):
            return -self.slope.float()[h] * (q_pos - k_pos).clamp(min=0).float().sqrt()

    @hf_posenc.register("my_ramp")
    class MyRamp(hf_posenc.PositionalEncoding):
        """Adds a learned vector times the position."""

        def __init__(self, geometry):
            super().__init__(geometry)
            self.direction = nn.Parameter(torch.randn(geometry.hidden_size) * 0.1)

        def embed(self, x, pos):
            return x + pos[..., None].to(x.dtype) * self.direction.to(x.dtype)

    names = ["my_reflection", "my_bias", "my_ramp"]
    yield names
    for name in names:
        del ENCODINGS._entries[name]


@both_slots
def test_encodings_of_the_user(arch, registered, batch, tmp_path):
    keep = batch["attention_mask"].bool()
    assert set(registered) <= set(hf_posenc.list_encodings())
    for name in registered:
        model = hf_posenc.patch(tiny_model(arch), name)
        model(**batch, labels=batch["input_ids"]).loss.backward()
        assert all(p.grad.abs().sum() > 0 for p in patch_parameters(model))
        with torch.no_grad():
            logits = model(**batch).logits
            assert_close(logits[0, 5:], model(batch["input_ids"][:1, 5:]).logits[0], **CLOSE)
            model.set_attn_implementation("eager")
            assert_close(model(**batch).logits[keep], logits[keep], **CLOSE)
            model.set_attn_implementation("sdpa")
            settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
            assert torch.equal(model.generate(**batch, **settings), model.generate(**batch, use_cache=False, **settings))
            model.save_pretrained(tmp_path / name)
            again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
            assert torch.equal(again(**batch).logits, model(**batch).logits)
        assert hf_posenc.describe(name).title in type(patch_of(again).placements[0].encoding).__name__
    with pytest.raises(ValueError, match="registered twice"):
        hf_posenc.register("my_bias")(type("Other", (type(patch_of(again).placements[0].encoding),), {}))
    with pytest.raises(ValueError, match="snake_case"):
        hf_posenc.register("My-Bias")


def test_options_and_layers_are_saved(registered, ids, tmp_path):
    model = hf_posenc.patch(tiny_model("llama"), "my_reflection", layers=[1], dims=2)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    same(again, model, ids)
    (live,) = hf_posenc.inspect(again).encodings
    assert (live.name, live.options, live.layers) == ("my_reflection", {"dims": 2}, (1,))


def test_a_plain_config_is_not_ours():
    assert type(AutoConfig.for_model("llama")) is LlamaConfig
    assert AutoConfig.for_model("llama").model_type == "llama"


# -- what a stock checkpoint promises ---------------------------------------------------------------------------------


def inputs_of_every_kind():
    """Rows as people give them: plain, padded on either side, with positions of their own."""
    torch.manual_seed(11)
    ids = torch.randint(3, 60, (2, 10))
    left, right = torch.ones_like(ids), torch.ones_like(ids)
    left[0, :3], right[0, 7:] = 0, 0
    shifted = torch.arange(2, 12).expand(2, -1)
    return {
        "plain": {"input_ids": ids},
        "left": {"input_ids": ids, "attention_mask": left},
        "right": {"input_ids": ids, "attention_mask": right},
        "left with positions": {"input_ids": ids, "attention_mask": left, "position_ids": (left.cumsum(-1) - 1).clamp(min=0)},
        "shifted": {"input_ids": ids, "position_ids": shifted},
    }


def claimed(arch, name):
    """The patched models of a family whose checkpoint is said to be a stock one."""
    for layers in (None, "all"):
        try:
            model = hf_posenc.patch(tiny_model(arch), name, layers=layers, **options_for(name))
        except ValueError:
            continue
        if hf_posenc.inspect(model).stock_checkpoint:
            yield model


@pytest.mark.cover("name family_slot", "encoding_kind family_kind", "arch")
@torch.no_grad()
def test_a_stock_checkpoint_computes_what_the_patched_model_did(arch, name, tmp_path):
    """Whatever the input: built by transformers from the saved configuration and weights alone."""
    for model in claimed(arch, name):
        model.save_pretrained(tmp_path)
        stock = type(model).from_pretrained(tmp_path)
        assert "posenc" not in repr(stock)
        for kind, inputs in inputs_of_every_kind().items():
            real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
            assert_close(stock(**inputs).logits[real], model(**inputs).logits[real], **CLOSE, msg=lambda m, k=kind: f"{k}: {m}")


@pytest.mark.parametrize("arch", FAMILIES)
def test_what_can_be_a_stock_checkpoint_is_one(arch):
    """But where the stock model counts padding: a patched one does not."""
    counts = getattr(ARCHITECTURES[arch], "counts_padding", False)
    assert any(any(claimed(arch, name)) for name in ("rope", "learned", *hf_posenc.list_encodings())) != counts


# -- PEFT -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["alibi", "t5", "rerope"])
@torch.no_grad()
def test_an_adapter_on_a_loaded_base(arch, name, ids, tmp_path):
    """The way that the README recommends: save the patched base, load it, train an adapter, and load both again."""
    peft = pytest.importorskip("peft")
    trained(arch, name).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM")).eval()
    model.save_pretrained(tmp_path / "adapter")
    assert not any("embed" in key for key in peft.utils.load_peft_weights(tmp_path / "adapter")), "the vocabulary is that of the base"
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert_close(again(ids).logits, model(ids).logits, **CLOSE)
    assert not torch.allclose(again(ids).logits, AutoModelForCausalLM.from_pretrained(tmp_path / "base")(ids).logits)


@torch.no_grad()
def test_the_configuration_of_a_loaded_model_is_one_of_its_family(ids, tmp_path):
    hf_posenc.patch(tiny_model("llama"), "alibi").save_pretrained(tmp_path / "patched")
    tiny_model("llama").save_pretrained(tmp_path / "stock")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "patched").config
    assert isinstance(config, LlamaConfig)
    for copied in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert type(copied) is type(config) and copied.to_dict() == config.to_dict()
        assert type(AutoModelForCausalLM.from_config(copied)) is type(tiny_model("llama"))
    for folder in ("patched", "stock"):
        assert type(config).from_pretrained(tmp_path / folder).vocab_size == 61
    if dataclasses.is_dataclass(LlamaConfig):  # else it looks at no types, and leaves it to the class of the model to refuse
        with pytest.raises(Exception, match="import hf_posenc"):
            LlamaConfig.from_pretrained(tmp_path / "patched")


@pytest.mark.parametrize("error", [TypeError, KeyError, RuntimeError, AttributeError])
@torch.no_grad()
def test_a_scheme_that_the_family_cannot_build_is_no_stock_checkpoint(error, ids, tmp_path):
    """A rotary module may stumble over its own configuration (an entry that is None, a scheme it does not know) in any way."""
    model = tiny_model("llama")
    kind = type(model.model.rotary_emb)

    class Stumbling(kind):
        def __init__(self, config, device=None):
            if config.rope_parameters["rope_type"] != "default":
                raise error("out of luck")
            super().__init__(config, device)

    model.model.rotary_emb.__class__ = Stumbling
    hf_posenc.patch(model, "yarn", factor=4.0)
    assert not hf_posenc.inspect(model).stock_checkpoint
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


@torch.no_grad()
def test_a_slot_is_as_wide_when_loaded_as_it_was(tmp_path):
    """What Mistral 4 computes by default is wider than what its native scheme turns."""
    if "mistral4" not in transformers.CONFIG_MAPPING:
        pytest.skip("this transformers has no Mistral 4")
    model = AutoModel.from_config(tiny_family_config("mistral4")).eval()
    ids = torch.arange(3, 13)[None]
    hf_posenc.patch(model, "alibi").save_pretrained(tmp_path)
    assert_close(AutoModel.from_pretrained(tmp_path).eval()(ids)[0], model(ids)[0])
