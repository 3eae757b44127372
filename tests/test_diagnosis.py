"""What the doctor says of models: what they are, what is wrong with them, what encodings do in them; and the keys of its JSON."""

import copy
import dataclasses
import json
import time
from types import MethodType

import peft
import pytest
import torch
import transformers
from custom_code import write
from test_columns import flash_attention as flash_attention  # a fixture
from tiny import save_tiny, tiny_config, tiny_model
from torch import nn
from transformers import AttentionInterface, AutoConfig
from transformers.models.llama import modeling_llama

import hf_posenc
from hf_posenc import cli
from hf_posenc.doctor import examination, matrix, report, trials
from hf_posenc.doctor.examination import Clock, flash_here, plan_of, subjects_of
from hf_posenc.doctor.found import ranges
from hf_posenc.doctor.outlook import outlook, representatives
from hf_posenc.doctor.reading import Source
from hf_posenc.doctor.report import Report
from hf_posenc.doctor.trials import CHECKED, CHECKS, Twin
from hf_posenc.encodings import ENCODINGS
from hf_posenc.evaluation.demo_model import fetch_demo_model
from hf_posenc.files import default_cache_dir
from hf_posenc.patching import patch_of

CPU = torch.device("cpu")
REAL_CACHE = default_cache_dir()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_POSENC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def doctor(tmp_path):
    """Runs the command on a CPU and returns its exit status and what it wrote."""

    def run(*words):
        written = tmp_path / "doctor.json"
        status = cli.main(["doctor", *map(str, words), "--device", "cpu", "--output", str(written)])
        return status, json.loads(written.read_text()) if written.is_file() else {}

    return run


def written(folder, family="llama", **changes):
    """A folder with a configuration alone; `changes` are written into the file, where nobody checks them."""
    tiny_config(family).save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(said))
    return folder


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "llama")


def only(found):
    """The one fault of a report."""
    (fault,) = found["faults"] if isinstance(found, dict) else map(dataclasses.asdict, found.faults)
    return fault


# -- a sound model ----------------------------------------------------------------------------------------------------

CHECK = {"backend", "encoding", "path", "why", "rows", "what", "error", "failure"}
FOUND = {
    *("model_type", "model_class", "decoder", "wrappers", "slot", "native", "seam", "attention", "layers", "with_attention"),
    *("with_positions", "sliding", "patched_by_default", "heads", "rotated", "pairs", "native_context", "scaling", "live"),
}
MACHINE = {
    *("device", "torch", "transformers", "hf_posenc", "python", "platform", "cores", "threads", "load", "cuda", "packages"),
}
KEYS = {
    *("schema_version", "passed", "asked", "machine", "dtype", "tolerance", "model", "faults", "encodings", "trials", "kernels", "costs"),
    *("not_examined", "seconds"),
}


def test_the_keys_of_the_json(doctor, tmp_path):
    """Whoever changes one has to raise the version of the schema, unless he adds one."""
    config = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 6, "beta_fst": 3}
    status, found = doctor(written(tmp_path / "m", rope_parameters=config), "--encoding", "alibi", "--lengths", "32")
    assert status == 1 and report.SCHEMA_VERSION == found["schema_version"] == 1
    assert found.keys() == KEYS and found["machine"].keys() == MACHINE and found["model"].keys() == FOUND
    assert all(fault.keys() == {"where", "what", "advice", "grave"} for fault in found["faults"]) and found["faults"]
    assert found["encodings"]["alibi"].keys() == {"place", "path", "in_training", "why", "options", "stages", "learns"}
    assert {frozenset(trial) for trial in found["trials"]} == {frozenset({"encoding", "check", "outcome", "why"})}
    assert {frozenset(check) for check in found["kernels"]} == {frozenset(CHECK)}
    assert found["tolerance"].keys() == {"atol", "rtol"} and found["costs"]["32"]["alibi"].keys() == {"seconds", "peak"}
    assert found["not_examined"].keys() == {"on the twin", "on this device"}
    documented = report.__doc__.split("That of `--all`")[0]
    assert all(f"`{key}`" in documented for key in KEYS)


def test_a_model_type(doctor, monkeypatch, capsys):
    monkeypatch.setattr(examination, "in_kernels", lambda *_: None)  # on eight heads of width 256
    status, found = doctor("gemma2", "--encoding", "alibi", "yarn:factor=4", "sinusoidal")
    assert status == 0 and found["asked"] == "gemma2"
    model, config = found["model"], AutoConfig.for_model("gemma2")
    assert model["sliding"] == [i for i, kind in enumerate(config.layer_types) if kind == "sliding_attention"]
    assert model["patched_by_default"] == [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
    assert (model["layers"], model["native_context"]) == (config.num_hidden_layers, config.max_position_embeddings)
    assert model["heads"] == [config.num_attention_heads, config.num_key_value_heads, config.head_dim] and model["pairs"] == "halves"
    assert model["slot"] == "rotary_emb (Gemma2RotaryEmbedding)" and model["seam"] == "the attention interface"
    places = {label: seen["place"] for label, seen in found["encodings"].items()}
    assert places == {
        "alibi": "in the attention function",
        "yarn:factor=4": "in the native slot",
        "sinusoidal": "in the embeddings",
    }
    assert found["encodings"]["yarn:factor=4"]["options"]["factor"] == 4
    checks = {(trial["encoding"], trial["check"]): trial["outcome"] for trial in found["trials"]}
    assert set(checks) == {(label, check) for label in places for check in CHECKED}
    assert all((outcome == "passed") == (check != "device") for (_, check), outcome in checks.items())
    out = capsys.readouterr().out
    assert (
        f"torch: {torch.__version__}" in out and "platform: " in out and f"accelerate {found['machine']['packages']['accelerate']}" in out
    )
    assert "all that was examined passes" in out


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("gptj", {"pairs": "neighbours", "rotated": 64, "native": "rope"}),
        ("deepseek_v3", {"pairs": "halves, the last of the head", "rotated": 64}),
        ("gpt2", {"slot": "wpe (Embedding)", "native": "learned", "rotated": 0}),
        ("bloom", {"slot": "", "native": "alibi", "seam": "a product of queries and keys"}),
        ("jamba", {"slot": "", "native": "none", "with_positions": ()}),
        ("smollm3", {"with_positions": tuple(i for i in range(36) if i % 4 != 3)}),
        ("bart", {"decoder": "BartDecoder", "wrappers": ("BartForConditionalGeneration", "BartModel")}),
        ("qwen2_vl", {"decoder": "Qwen2VLTextModel", "wrappers": ("Qwen2VLForConditionalGeneration", "Qwen2VLModel")}),
    ],
)
def test_what_is_found(family, said):
    found = Report(family, {})
    model = Source(family).skeleton()
    assert examination.look(found, examination.recognised(found, model), model) and not found.faults
    assert {name: getattr(found.model, name) for name in said} == said


def test_what_each_encoding_would_do_is_what_a_patch_does():
    model = tiny_model("llama")
    seen = outlook(patch_of(model), plan_of([]), CPU, torch.float32)
    assert set(seen) == set(hf_posenc.list_encodings())
    for label in representatives(seen):
        with hf_posenc.patched(model, label, **seen[label].options):
            live = hf_posenc.inspect(model).encodings[0]
        assert (live.path.path, live.in_training.path) == (seen[label].path, seen[label].in_training), label
        assert seen[label].place == live.place
    refused = [label for label, each in seen.items() if each.place == "refused"]
    assert refused and "rope" not in refused
    for label in refused:
        with pytest.raises(ValueError):
            hf_posenc.patch(model, label, **seen[label].options)


class Wide(hf_posenc.PositionalEncoding):
    """A bias for wide models."""

    name = "wide"

    def __init__(self, geometry):
        super().__init__(geometry)
        if geometry.hidden_size < 1000:
            raise ValueError("too narrow")

    def bias(self, h, q_pos, k_pos):
        return (k_pos - q_pos).float()


@pytest.mark.parametrize("heads", [9, 64])
def test_a_wide_model_takes_what_a_narrow_one_takes(heads, monkeypatch):
    """What is looked at in a narrow stream is not refused for that; 9 heads are the demo model's."""
    monkeypatch.setitem(ENCODINGS._entries, Wide.name, Wide)
    config = AutoConfig.for_model("llama", hidden_size=64 * heads * 2, num_attention_heads=heads, num_key_value_heads=heads, head_dim=64)
    config.num_hidden_layers = 1
    with torch.device("meta"):
        record = patch_of(transformers.LlamaForCausalLM(config))
    refused = {label for label, seen in outlook(record, plan_of([]), CPU, torch.float32).items() if not seen.served}
    assert refused == {"abacus", "bipe", *(["rope_pp"] if heads % 2 else [])}, "what asks for options, or for pairs of heads"


def test_one_of_each_kind_and_of_each_place_first():
    seen = outlook(patch_of(tiny_model("llama")), plan_of([]), CPU, torch.float32)
    chosen = representatives(seen)
    assert {seen[label].kind for label in chosen} == {each.kind for each in seen.values() if each.place != "refused"}
    assert len(chosen) == len({seen[label].kind for label in chosen}) < len(seen) / 2
    ways = {(each.place, each.path) for each in seen.values() if each.place != "refused"}
    assert {(seen[label].place, seen[label].path) for label in chosen[: len(ways)]} == ways


def test_what_there_is_no_time_for_is_said(doctor, folder, monkeypatch, capsys):
    monkeypatch.setattr(Clock, "passed", property(lambda self: 1e6))
    status, found = doctor(folder)
    assert status == 0
    for part, made in (("on the twin", "trials"), ("on this device", "kernels")):
        examined = {each["encoding"] for each in found[made]}
        assert len(examined) == 1 and not examined & set(found["not_examined"][part])
    served = {label for label, seen in found["encodings"].items() if seen["place"] != "refused"}
    assert {*found["not_examined"]["on the twin"]} | {trial["encoding"] for trial in found["trials"]} == served
    assert "not examined, on this device: " in capsys.readouterr().out


# -- the twin ---------------------------------------------------------------------------------------------------------


def twin():
    return Twin(tiny_model("llama"))


def sound(twin, check):
    """What the stock model would come to."""
    return trials.Trial("stock", check, "passed")


def outcomes(twin, label="alibi"):
    found = {trial.check: trial for trial in twin.examine(label, {})}
    assert all(trial.why for trial in found.values() if trial.outcome != "passed")
    return {check: trial.outcome for check, trial in found.items()}


def spoil(monkeypatch, when, change=lambda x: x + 0.5):
    """States that are wrong in some passes of a patched model."""
    before = trials.forward

    def forward(record, inputs, use_cache=False):
        output = before(record, inputs, use_cache)
        if patch_of(record.model).placements and when(inputs, use_cache):
            output.last_hidden_state = change(output.last_hidden_state)
        return output

    monkeypatch.setattr(trials, "forward", forward)


@pytest.mark.parametrize(
    ("check", "when"),
    [
        ("decoding", lambda inputs, use_cache: use_cache),
        ("padding", lambda inputs, use_cache: "attention_mask" in inputs),
        ("packing", lambda inputs, use_cache: "position_ids" in inputs),
    ],
)
def test_a_check_that_fails(monkeypatch, check, when):
    sound = outcomes(twin())
    spoil(monkeypatch, when)
    found = outcomes(twin())
    assert found == sound | {check: "FAILED"}


def test_gradients_that_are_none(monkeypatch):
    spoil(monkeypatch, lambda inputs, use_cache: torch.is_grad_enabled(), lambda x: x * torch.inf)
    assert outcomes(twin())["training"] == "FAILED"


def test_a_checkpoint_that_lacks_something(monkeypatch):
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: tiny_model("llama", seed=1))
    monkeypatch.setattr(Twin, "of_stock", sound)
    assert outcomes(twin())["saving"] == "FAILED"


def test_a_model_that_does_not_come_back(monkeypatch):
    def leaves_a_trace(model):
        hf_posenc.unpatch(model).model.norm.weight.data.add_(1)

    monkeypatch.setattr(trials, "unpatch", leaves_a_trace)
    assert outcomes(twin())["unpatch"] == "FAILED"


@pytest.mark.parametrize(("error", "outcome"), [(ValueError, "refused"), (RuntimeError, "FAILED")])
def test_what_does_not_take_a_patch(monkeypatch, error, outcome):
    before = trials.patch

    def patch(model, name, **options):
        if name == "t5":
            raise error("no room")
        return before(model, name, **options)

    monkeypatch.setattr(trials, "patch", patch)
    subject = twin()
    assert outcomes(subject, "t5") == {"patch": outcome}
    made = [*subject.examine("alibi", {}), *subject.examine("t5", {})]
    assert [(bad.encoding, bad.why) for bad in trials.wrong(made)] == [("t5", "no room")] * (outcome == "FAILED")
    assert trials.wrong([made[-1]]) == [made[-1]], "a model that takes none is no sound one"


def test_what_the_stock_model_does_not_do_either_is_no_failure():
    model = tiny_model("opt")
    assert not patch_of(model).architecture.packs
    found = outcomes(Twin(model))
    assert found["packing"] == "-" and found["padding"] == "passed"


def test_a_failed_check_is_told_and_decides(doctor, folder, monkeypatch, capsys):
    monkeypatch.setitem(CHECKS, "padding", lambda twin: 1 / 0)
    monkeypatch.setattr(Twin, "of_stock", sound)
    status, found = doctor(folder, "--encoding", "alibi")
    assert status == 1 and not found["passed"]
    assert "FAILED padding: ZeroDivisionError: division by zero (alibi)" in capsys.readouterr().out


# -- models that others have changed ----------------------------------------------------------------------------------


def diagnosed(model):
    before = {name: id(module) for name, module in model.named_modules()}
    found = hf_posenc.diagnose(model, ["alibi"])
    assert {name: id(module) for name, module in model.named_modules()} == before
    return found


def test_a_sound_model_is_left_alone():
    model = tiny_model("llama")
    found = diagnosed(model)
    assert found.passed and not found.faults and "all that was examined passes" in str(found)
    assert torch.equal(model(torch.arange(3, 9)[None]).logits, tiny_model("llama")(torch.arange(3, 9)[None]).logits)


def foreign(self, *args, **kwargs):
    return type(self).forward(self, *args, **kwargs)


@pytest.mark.parametrize(
    ("place", "where"), [("layers.1.self_attn", "layers.1.self_attn"), ("rotary_emb", "rotary_emb"), ("", "the decoder")]
)
def test_a_replaced_forward(place, where):
    model = tiny_model("llama")
    module = model.model.get_submodule(place)
    module.forward = MethodType(foreign, module)
    found = diagnosed(model)
    assert not found.passed and only(found)["where"] == where
    assert "test_diagnosis.foreign" in only(found)["what"] and only(found)["advice"].startswith("undo that")


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def test_a_wrapped_rotary_module():
    model = tiny_model("llama")
    model.model.rotary_emb = Wrapper(model.model.rotary_emb)
    found = diagnosed(model)
    assert not found.passed and only(found)["where"] == "rotary_emb"
    assert "around the LlamaRotaryEmbedding of the family is a Wrapper" in only(found)["what"] and "(.inner)" in only(found)["advice"]
    model = tiny_model("llama")
    model.model.rotary_emb = nn.Identity()
    assert "in the place of the LlamaRotaryEmbedding" in only(diagnosed(model))["what"]


def test_a_rotary_module_where_none_belongs():
    model = tiny_model("llama")
    model.model.layers[0].self_attn.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    assert only(diagnosed(model))["where"] == "layers.0.self_attn.rotary_emb" and only(diagnosed(model))["grave"]


@pytest.mark.parametrize("how", ["module", "configuration"])
def test_frequencies_that_the_configuration_does_not_say(how):
    model = tiny_model("llama")
    if how == "module":
        model.model.rotary_emb.inv_freq /= 4
    else:
        model.config.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    found = diagnosed(model)
    assert not found.passed and only(found)["what"].startswith("the frequencies in the model are not those")
    model.model.rotary_emb.inv_freq[0] = torch.nan
    assert "no finite numbers" in only(diagnosed(model))["what"]


def test_a_slot_of_ours_that_others_have_written_to():
    model = hf_posenc.patch(tiny_model("llama"), "yarn", factor=2.0)
    found = diagnosed(model)
    assert found.passed and found.model.live == ("yarn on layers 0-1",)
    model.model.rotary_emb.rotary.inv_freq /= 2
    assert "than the patch of hf_posenc has put there" in only(diagnosed(model))["what"]


def test_what_is_worth_knowing_and_no_fault():
    model = tiny_model("llama")
    model.model.layers[1].mlp.forward = MethodType(foreign, model.model.layers[1].mlp)
    model.model.layers[0].register_forward_hook(foreign)
    found = diagnosed(model)
    assert found.passed and {fault.where for fault in found.faults} == {"layers.0", "layers.1.mlp"}
    assert all(not fault.grave and fault.advice for fault in found.faults)


def test_functions_that_are_replaced_for_the_whole_process(monkeypatch):
    stock = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda *args, **kwargs: stock(*args, **kwargs))
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", foreign_attention)
    found = hf_posenc.diagnose(tiny_model("llama"), ["nope"])
    assert [fault.where for fault in found.faults] == ["transformers.models.llama.modeling_llama.apply_rotary_pos_emb", "attention"]
    assert found.passed, "they compute what they should"


def foreign_attention(*args, **kwargs):
    return transformers.integrations.sdpa_attention.sdpa_attention_forward(*args, **kwargs)


def test_peft():
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    found = diagnosed(model)
    assert found.passed and found.model.wrappers == ("PEFT LORA 'default'", "LlamaForCausalLM")
    assert only(found)["where"].startswith("layers.0.self_attn.q_proj and 1 more") and not only(found)["grave"]
    model = peft.get_peft_model(tiny_model("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert diagnosed(model).model.wrappers[0] == "PEFT PROMPT_TUNING 'default', 3 virtual tokens first"


@pytest.mark.parametrize("model", [nn.Linear(2, 2), torch.compile(tiny_model("llama"))])
def test_no_model_of_transformers(model):
    found = hf_posenc.diagnose(model)
    assert not found.passed and found.model is None and "_orig_mod" in only(found)["advice"]


def test_a_family_that_cannot_be_patched(doctor):
    status, found = doctor("mamba")
    assert status == 1 and found["model"] is None
    assert "it has no attention" in only(found)["what"] and "hf-posenc models" in only(found)["advice"]


# -- configurations ---------------------------------------------------------------------------------------------------

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "original_max_position_embeddings": 3}


@pytest.mark.parametrize(
    ("parameters", "what", "advice"),
    [
        ({"rope_type": "yran", "rope_theta": 1e4}, "the rope_type 'yran', which", "Did you mean 'yarn'"),
        ({"rope_type": "linear", "rope_theta": 1e4}, "the rope_type 'linear' and no factor", "add factor"),
        ({"rope_type": "llama3", "rope_theta": 1e4}, "'llama3' and no factor", "add factor"),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 0.5}, "the factor 0.5, which is no number of 1 or more", "of 1 or more"),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": "4"}, "the factor '4'", "of 1 or more"),
        ({"rope_theta": 1e4, "factor": 4.0}, "a factor of 4.0, but no rope_type: nothing is scaled", "add the rope_type"),
        (YARN | {"factor": 8.0}, "the factor 8 for 'yarn', but the lengths say 4", "max_position_embeddings 24, or the factor 4"),
        ({"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}, "Missing required keys", "config.json"),
    ],
)
def test_a_broken_scaling(doctor, tmp_path, parameters, what, advice):
    status, found = doctor(written(tmp_path / "m", rope_parameters=parameters), "--encoding", "nope")
    assert status == 1 and not found["passed"]
    fault = next(fault for fault in found["faults"] if fault["grave"])
    assert what in fault["what"] and advice in fault["advice"] and fault["where"] == "configuration"


@pytest.mark.parametrize(
    "parameters",
    [
        YARN | {"factor": 4.0},
        YARN | {"factor": 4.0, "original_max_position_embeddings": 12},
        {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | {"original_max_position_embeddings": 6},
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    ],
)
def test_a_scaling_in_order(doctor, tmp_path, parameters):
    """Llama 3.1 itself has the factor 8 for 16 times the length."""
    status, found = doctor(written(tmp_path / "m", rope_parameters=parameters), "--encoding", "nope")
    assert status == 0 and not found["faults"] and found["model"]["scaling"]["rope_parameters"] == parameters


def test_what_transformers_says_of_a_scaling(doctor, tmp_path):
    status, found = doctor(written(tmp_path / "m", rope_parameters=YARN | {"factor": 4.0, "beta_fats": 3}), "--encoding", "nope")
    assert status == 0 and not only(found)["grave"] and "beta_fats" in only(found)["what"]


def test_code_beside_the_weights(doctor, tmp_path):
    (folder := tmp_path / "m").mkdir()
    (folder / "config.json").write_text(json.dumps(write(folder, "halves")))
    status, found = doctor(folder)
    assert status == 1 and "--trust_remote_code" in only(found)["advice"]
    status, found = doctor(folder, "--trust_remote_code", "--encoding", "alibi")
    assert status == 0 and found["model"]["slot"] == "angles (LlamaRotaryEmbedding)"
    assert {trial["outcome"] for trial in found["trials"] if trial["check"] != "device"} <= {"passed", "-"}


def test_attention_of_its_own_making(doctor, tmp_path):
    (folder := tmp_path / "own").mkdir()
    (folder / "config.json").write_text(json.dumps(write(folder, "halves")))
    code = (folder / "modeling_own.py").read_text()
    call = "attend(self, q, k, v, mask, scaling=self.scaling, dropout=0.0, **kwargs)"
    by_hand = "torch.nn.functional.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), is_causal=True)"
    assert call in code
    (folder / "modeling_own.py").write_text(code.replace(call, f"{by_hand}.transpose(1, 2), None"))
    status, found = doctor(folder, "--trust_remote_code")
    assert status == 1 and found["model"] is None
    assert "never reaches the attention interface" in only(found)["what"] and "ALL_ATTENTION_FUNCTIONS" in only(found)["advice"]


def test_a_type_that_transformers_does_not_know(doctor, tmp_path):
    status, found = doctor(written(tmp_path / "m", model_type="llama9"))
    assert status == 1 and "'llama9' is unknown" in only(found)["what"] and "update transformers" in only(found)["advice"]


def test_an_adapter(doctor, tmp_path):
    base = save_tiny(tmp_path / "base")
    model = hf_posenc.patch(transformers.AutoModelForCausalLM.from_pretrained(base), "alibi")
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    status, found = doctor(tmp_path / "adapter", "--encoding", "nope")
    assert status == 0 and str(base) in only(found)["what"] and "comes with it" in only(found)["advice"]
    assert found["model"]["live"] == ["alibi on layers 0-1"]


def test_a_checkpoint_of_ours(doctor, tmp_path):
    hf_posenc.patch(tiny_model("llama"), "alibi", layers=[1]).save_pretrained(tmp_path / "m")
    status, found = doctor(tmp_path / "m", "--encoding", "t5")
    assert status == 0 and found["model"]["live"] == ["alibi on layers 1"] and found["model"]["native"] == "rope"


def test_an_encoding_that_is_named_and_refused(doctor, folder):
    status, found = doctor(folder, "--encoding", "abacus")
    assert status == 1 and "digits" in only(found)["what"] and not found["kernels"] and not found["trials"]


@pytest.mark.parametrize("words", [["llama"], ["--model", "llama"], ["--encoding", "nope", "--dtype", "float32", "llama"]])
def test_where_the_model_stands_among_the_flags(doctor, words):
    assert doctor(*words, "--encoding", "nope")[1]["asked"] == "llama"


# -- flash attention --------------------------------------------------------------------------------------------------


def test_flash_attention_is_examined_where_it_is(flash_attention, monkeypatch):
    record = patch_of(tiny_model("llama"))
    (subject,) = subjects_of(record, CPU, torch.bfloat16, "flash_attention_2")
    found = Report(None, {})
    found.encodings = outlook(record, plan_of(["alibi", "yarn", "t5", "rerope", "nape"]), CPU, torch.bfloat16)
    examination.in_kernels(found, [subject], record, list(found.encodings), list(found.encodings), Clock(1e6))
    assert {(check.backend, check.encoding, check.path) for check in found.kernels} == {
        ("flash_attention_2", "alibi", "columns"),
        ("flash_attention_2", "nape", "columns"),
        ("flash_attention_2", "yarn", "stock"),
    }
    assert {check.rows for check in found.kernels} == {"plain", "padded", "packed"} and not found.failures
    assert found.not_examined["on this device"] == ["t5", "rerope"]
    monkeypatch.setattr(
        flash_attention, "flash_attn_func", lambda q, k, v, *args, **kwargs: v.repeat_interleave(q.shape[2] // v.shape[2], 2)
    )
    monkeypatch.setattr(transformers.modeling_flash_attention_utils, "_loaded_implementation", None)
    examination.in_kernels(found, [subject], record, ["alibi"], ["alibi"], Clock(1e6))
    assert "columns" in found.failures["alibi"], "a kernel that is wrong is found"


def test_flash_attention_is_looked_for(monkeypatch):
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(transformers.utils, "is_flash_attn_4_available", lambda: True)
    cuda = torch.device("cuda")
    assert flash_here(cuda, torch.bfloat16) == ["flash_attention_2", "flash_attention_4"]
    assert flash_here(cuda, torch.float32) == flash_here(CPU, torch.bfloat16) == []
    record = patch_of(Source("llama").skeleton())
    assert [subject.backend for subject in subjects_of(record, cuda, torch.float16)] == ["sdpa", "flash_attention_2", "flash_attention_4"]
    assert [subject.backend for subject in subjects_of(record, cuda, torch.float16, "eager")] == ["eager"]


# -- all types --------------------------------------------------------------------------------------------------------


@pytest.fixture
def types(monkeypatch):
    """Three model types stand for all."""
    monkeypatch.setattr(matrix, "causal_types", lambda: ["gpt2", "llama", "mamba"])


def test_every_type(doctor, types, capsys):
    status, found = doctor("--all")
    assert status == 0 and found["passed"] and found["schema_version"] == 1
    assert found.keys() == {"schema_version", "passed", "machine", "encodings", "seconds", "types"}
    assert [row["status"] for row in found["types"].values()] == ["served", "served", "refused"] and list(
        found["types"]
    ) == matrix.causal_types()
    assert found["types"]["llama"].keys() == {"status", "why", "checks", "reasons", "seconds"}
    assert found["types"]["llama"]["checks"].keys() == set(CHECKED)
    assert found["types"]["llama"]["checks"]["saving"] == dict.fromkeys(["alibi", "yarn", "sinusoidal"], "passed")
    assert "it has no attention" in found["types"]["mamba"]["why"]
    assert "2 served, 1 refused, 0 not built" in capsys.readouterr().out


def test_it_goes_on_where_it_was_stopped(doctor, types, monkeypatch, tmp_path):
    seen, stops = [], ["llama"]
    before = matrix.examined

    def examined(index, key, model_type, *rest):
        if model_type in stops:
            raise KeyboardInterrupt
        seen.append(model_type)
        return before(index, key, model_type, *rest)

    monkeypatch.setattr(matrix, "examined", examined)
    assert doctor("--all", "--encoding", "nope") == (130, {})
    stops.clear()
    status, found = doctor("--all", "--encoding", "nope")
    assert status == 0 and seen == ["gpt2", "llama", "mamba"] and list(found["types"]) == seen
    assert [path.name for path in tmp_path.iterdir() if "doctor" in path.name] == ["doctor.json"], "and leaves nothing else"
    assert doctor("--all", "--encoding", "alibi")[0] == 0 and len(seen) == 6


def test_a_type_that_fails(doctor, types, monkeypatch, capsys):
    monkeypatch.setitem(CHECKS, "padding", lambda twin: 1 / 0)
    monkeypatch.setattr(Twin, "of_stock", sound)
    status, found = doctor("--all", "--encoding", "alibi")
    assert status == 1 and found["types"]["gpt2"]["checks"]["padding"] == {"alibi": "FAILED"}
    assert "gpt2: padding, alibi: ZeroDivisionError" in capsys.readouterr().out


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_ranges():
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8" and ranges([]) == "none" and ranges([3]) == "3"


@pytest.mark.slow
def test_the_demo_model_in_under_a_minute(doctor):
    model = fetch_demo_model(REAL_CACHE)
    start = time.monotonic()
    status, found = doctor(model)
    assert status == 0 and time.monotonic() - start < 60
    assert len(found["trials"]) > 10 * len(CHECKED) and len({check["path"] for check in found["kernels"]}) == 4
