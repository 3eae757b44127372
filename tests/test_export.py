"""What other libraries are told of an encoding: what each reads, what it would have read, and what is refused."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from engines import NATIVE, SCHEMES, log_probs, model_for, save_base
from tiny import save_tiny, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

import hf_posenc
from hf_posenc import cli
from hf_posenc.exporting import ENGINES, gguf_file
from hf_posenc.exporting.checkpoint import write_checkpoint
from hf_posenc.exporting.rotation import geometry_of, rotation_of
from hf_posenc.exporting.schemes import frequencies_of

README = Path(__file__).parents[1] / "README.md"
FROZEN = {"dynamic_ntk": {"factor": 2.0}, "dynamic_yarn": {}, "longrope": {"factor": 2.0}}
BEYOND = {"alibi": {}, "t5": {}, "rerope": {"window": 16}, "cope": {}, "learned": {}, "fox": {}, "log_n": {}}


def patched(scheme, family="llama", **changes):
    model = model_for(family, **changes)
    name = scheme.partition(":")[0]
    return hf_posenc.patch(model, name, **{**SCHEMES, **FROZEN, **BEYOND}[scheme])


def read(engine, model, fields=None):
    """What an engine reads of a model as it is saved, with entries changed."""
    config = {**model.config.to_dict(), **(fields or {})}
    return ENGINES[engine]().read(config, geometry_of(config))


# -- traps: what a saved checkpoint is elsewhere, and what is exported --------------------------------------------------


def test_theta_is_lost_in_mlx_and_written_under_both_names():
    model = model_for()
    assert read("mlx", model).differs(rotation_of(model)).startswith("frequencies")  # theta 10000
    fields = hf_posenc.export(model, "mlx").fields
    assert fields["rope_theta"] == fields["rope_parameters"]["rope_theta"] == 50_000.0
    assert not read("mlx", model, fields).differs(rotation_of(model))


@pytest.mark.parametrize("engine", ["sglang", "mlx"])
def test_ntk_by_parts_would_be_yarn(engine):
    """The factor on cos and sin, 1 here, is read by nobody else under the name that transformers has for it."""
    model = patched("ntk_by_parts")
    saved = {"rope_scaling": model.config.rope_parameters, "rope_theta": model.config.rope_parameters["rope_theta"]}
    assert read(engine, model, saved).attention_factor == pytest.approx(1 + 0.1 * math.log(4))
    fields = hf_posenc.export(model, engine).fields
    assert read(engine, model, fields).attention_factor == 1
    told = fields.get("rope_scaling") or fields["rope_parameters"]
    assert told["mscale"] == told["mscale_all_dim"] == 0  # the latter would scale all of the attention of DeepSeek models


@pytest.mark.parametrize("scheme, factor", [("ntk_by_parts", 1.0), ("yarn", 1 + 0.1 * math.log(4)), ("yarn:attention_factor=0.9", 0.9)])
def test_old_vllm_has_a_field_of_its_own_for_the_factor(scheme, factor):
    """It multiplies 0.1 ln s + 1 by `attn_factor`, and llama.cpp does so still."""
    model = patched(scheme)
    told = hf_posenc.export(model, "vllm").fields["rope_parameters"]
    assert told["attention_factor"] == pytest.approx(factor)
    assert told["attn_factor"] * (1 + 0.1 * math.log(4)) == pytest.approx(factor)
    assert hf_posenc.export(model, "llama.cpp").fields["llama.rope.scaling.attn_factor"] == pytest.approx(told["attn_factor"])


def test_llama3_of_another_length_is_a_table_in_a_gguf():
    """Its converter reads the native context where transformers does not write it, and takes 8192."""
    model = patched("llama3")
    exported = hf_posenc.export(model, "llama.cpp")
    turning = model.model.rotary_emb.rotary.inv_freq
    plain = 50_000.0 ** (-torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(plain / exported.table, turning, rtol=1e-6, atol=0)
    assert hf_posenc.export(model, "mlx").fields["rope_scaling"]["original_max_position_embeddings"] == NATIVE


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_linear_is_not_stretched_twice(engine):
    """An enlarged `max_position_embeddings` is multiplied by the factor again."""
    model = patched("linear")
    assert read(engine, model).context_length == 4 * NATIVE
    exported = hf_posenc.export(model, engine)
    assert exported.fields["max_position_embeddings"] == NATIVE and read(engine, model, exported.fields).context_length == 2 * NATIVE
    assert str(2 * NATIVE) in exported.command


def test_a_ramp_between_pairs_is_a_table_where_it_is_not_known():
    for engine, how in {"vllm": "as 'yarn'", "sglang": "as 'yarn'", "mlx": "as a table", "llama.cpp": "as a table"}.items():
        assert hf_posenc.export(patched("yarn:truncate=false"), engine).carried == how
    assert "#56446" in hf_posenc.export(patched("yarn:truncate=false"), "vllm").notes[0]


def test_the_share_of_p_rope_is_lost_in_sglang():
    model = patched("p_rope")
    assert read("sglang", model).differs(rotation_of(model))
    exported = hf_posenc.export(model, "sglang")
    assert exported.carried == "as a table" and not read("sglang", model, exported.fields).differs(rotation_of(model))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", FROZEN)
def test_what_follows_the_length_is_frozen_on_demand(engine, name):
    model = patched(name)
    with pytest.raises(ValueError, match="freeze_at"):
        hf_posenc.export(model, engine)
    exported, rotation = hf_posenc.export(model, engine, freeze_at=100), rotation_of(model, 100)
    assert exported.carried.endswith("frozen at 100 tokens") and rotation.context_length == 100
    if name == "dynamic_ntk":  # the paper's rule; the length goes in steps of one here
        theta = 50_000.0 * (2 * 100 / NATIVE - 1) ** (16 / 14)
        torch.testing.assert_close(rotation.frequencies, theta ** (-torch.arange(0, 16, 2) / 16), rtol=1e-5, atol=0)
    if name == "longrope":
        assert rotation.attention_factor == pytest.approx(math.sqrt(1 + math.log(2) / math.log(NATIVE)))


def test_stock_dynamic_is_frozen_too():
    scaling = {"rope_type": "dynamic", "rope_theta": 50_000.0, "factor": 2.0}
    model = model_for(rope_parameters=scaling)
    with pytest.raises(ValueError, match="freeze_at"):
        hf_posenc.export(model, "vllm")
    stock = model.model.rotary_emb
    stock(torch.zeros(1), torch.arange(100)[None])  # transformers changes its frequencies by what it has seen
    torch.testing.assert_close(rotation_of(model, 100).frequencies, stock.inv_freq, rtol=1e-6, atol=0)


def test_a_stock_longrope_is_refused_or_frozen():
    short, long = [1.0] * 8, [float(i + 1) for i in range(8)]
    lengths = {"original_max_position_embeddings": 32, "factor": 2.0}
    model = model_for(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "short_factor": short, "long_factor": long, **lengths})
    with pytest.raises(ValueError, match="freeze_at"):
        hf_posenc.export(model, "vllm")
    plain = 1e4 ** (-torch.arange(0, 16, 2) / 16)
    for length, factors in {30: short, 60: long}.items():
        torch.testing.assert_close(rotation_of(model, length).frequencies, plain / torch.tensor(factors))
        assert not read("vllm", model, hf_posenc.export(model, "vllm", freeze_at=length).fields).differs(rotation_of(model, length))


# -- what is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BEYOND)
def test_what_is_no_rotation_is_refused(engine, name):
    with pytest.raises(ValueError, match=f"refused for {engine}: '{name}' acts in `"):
        hf_posenc.export(patched(name), engine)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("yarn", {"factor": 2.0, "temperature": "log_n"}, "has temperature"),
        ("rope", {"sliding_window": 16}, "has sliding_window"),
        ("linear", {"factor": 2.0, "layers": [0]}, "layers turn differently"),
        ("rope", {"partial": 0.5}, "acts in `rotate`"),
        ("lerope", {}, "acts in `rotate`"),
    ],
)
def test_more_than_one_table_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        hf_posenc.export(hf_posenc.patch(model_for(), name, **options), "vllm")


def test_models_without_one_rotation_are_refused():
    with pytest.raises(ValueError, match="no rotation of its own"):
        hf_posenc.export(tiny_model("gpt2"), "vllm")
    with pytest.raises(ValueError, match="layers of several kinds"):
        hf_posenc.export(tiny_model("gemma3_text"), "vllm")
    with pytest.raises(ValueError, match=r"unknown engine 'vlm'\. Did you mean 'vllm'"):
        hf_posenc.export(model_for(), "vlm")


def test_a_table_is_refused_where_it_is_not_looked_at():
    with pytest.raises(ValueError, match="not known to read rope_freqs"):
        hf_posenc.export(patched("llama3", "qwen2"), "llama.cpp")
    interleaved = hf_posenc.patch(tiny_model("cohere"), "ntk_mixed", factor=2.0)
    with pytest.raises(ValueError, match="has no way to compute 'ntk_mixed'"):
        hf_posenc.export(interleaved, "vllm")


# -- what is carried ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_stock_transformers_computes_the_same_from_an_exported_checkpoint(scheme, tmp_path):
    """Also from that for MLX, which has all entries under both names."""
    model = patched(scheme)
    here = log_probs(model)
    for engine in ("transformers", "mlx"):
        folder = write_checkpoint(model, hf_posenc.export(model, engine), tmp_path / engine)
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert type(loaded) is type(model) and not hasattr(loaded.model, "posenc_patch")
        torch.testing.assert_close(log_probs(loaded), here, atol=2e-5, rtol=0)
        assert loaded.config.max_position_embeddings == model.config.max_position_embeddings
    assert (log_probs(hf_posenc.unpatch(model)) - here).abs().max() > 0.1


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "phi", "glm", "smollm3"])
def test_other_families_are_told(family):
    """Partial rotations and interleaved pairs among them."""
    model = hf_posenc.patch(tiny_model(family), "yarn", factor=2.0)
    for engine in ("transformers", "vllm"):
        exported = hf_posenc.export(model, engine)
        assert exported.carried == "as 'yarn'"
        assert not read(engine, model, exported.fields).differs(rotation_of(model))


def test_the_export_leaves_the_model_as_it_was():
    model = patched("yarn")
    before, config = log_probs(model), model.config.to_dict()
    for engine in ENGINES:
        hf_posenc.export(model, engine)
    assert torch.equal(log_probs(model), before) and model.config.to_dict() == config


def test_numbers_written_by_somebody_else_are_noticed():
    model = patched("yarn")
    model.model.rotary_emb.rotary.inv_freq.mul_(0.5)
    with pytest.raises(ValueError, match="patch again"):
        hf_posenc.export(model, "vllm")


@pytest.mark.parametrize("kind, options", [("yarn", {"factor": 2.0, "original_max_position_embeddings": 32}), ("linear", {"factor": 3.0})])
def test_schemes_are_those_of_transformers(kind, options):
    parameters = {"rope_type": kind, "rope_theta": 1e4, **options}
    geometry = geometry_of(
        AutoConfig.for_model("llama", **{"hidden_size": 64, "num_attention_heads": 4, "rope_parameters": parameters}).to_dict()
    )
    torch.testing.assert_close(frequencies_of(parameters, geometry), torch.tensor(geometry.frequencies), rtol=1e-6, atol=0)


# -- GGUF -----------------------------------------------------------------------------------------------------------------

gguf = pytest.importorskip("gguf", reason="the package gguf reads and writes GGUF")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(model_for(), tmp_path_factory.mktemp("gguf") / "base.gguf")


def metadata(path):
    reader = gguf_file.open_gguf(path)
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}, reader.tensors


def test_a_gguf_has_other_keys_and_all_else_as_it_was(base, tmp_path, capsys):
    output = tmp_path / "yarn.gguf"
    assert cli.main(["export", str(base), "--encoding", "yarn", "--factor", "2", "--output", str(output)]) == 0
    before, tensors = metadata(base)
    after, written = metadata(output)
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    assert changed == {
        "llama.context_length": 2 * NATIVE,
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 2.0,
        "llama.rope.scaling.attn_factor": 1.0,
        "llama.rope.scaling.original_context_length": NATIVE,
    }
    assert set(before) <= set(after) and before["tokenizer.ggml.tokens"] == after["tokenizer.ggml.tokens"]
    assert [(t.name, t.data.tobytes()) for t in tensors] == [(t.name, t.data.tobytes()) for t in written]
    assert "--rope-scaling yarn --rope-scale 2 --yarn-orig-ctx 64" in capsys.readouterr().out
    assert cli.main(["export", str(output), "--encoding", "yarn", "--factor", "2"]) == 1
    assert "scales its rotation already" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", [*SCHEMES, *FROZEN])
def test_a_gguf_is_told_what_a_model_is_told(scheme, base):
    freeze_at = 100 if scheme in FROZEN else None
    rotation = gguf_file.rotation_of_gguf(gguf_file.open_gguf(base), scheme.partition(":")[0], freeze_at, **{**SCHEMES, **FROZEN}[scheme])
    here = hf_posenc.export(patched(scheme), "llama.cpp", freeze_at=freeze_at)
    there = ENGINES["llama.cpp"]().export(rotation, "llama")
    assert there.fields == here.fields and there.carried == here.carried
    assert (there.table is None and here.table is None) or torch.equal(there.table, here.table)


@pytest.mark.parametrize("name", ["alibi", "rerope", "cope"])
def test_a_gguf_cannot_have_all(name, base, capsys):
    assert cli.main(["export", str(base), "--encoding", name]) == 1
    assert "more than one table of frequencies" in capsys.readouterr().err


def test_weights_are_those_of_the_model(base, tmp_path):
    """Rows of queries and keys lie in pairs there: transformers' own reader of GGUF puts them back."""
    model = patched("linear")
    reader = gguf_file.open_gguf(base)
    path = gguf_file.write_gguf(reader, hf_posenc.export(model, "llama.cpp"), tmp_path / "model.gguf", model.state_dict())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_a_gguf_of_another_model_is_refused(base, tmp_path, capsys):
    folder = save_tiny(tmp_path / "model")
    command = ["export", str(folder), "--to", "llama.cpp", "--gguf", str(base), "--output", str(tmp_path / "new.gguf")]
    assert cli.main(command) == 1 and "of another model: its hidden_size is 64" in capsys.readouterr().err
    other = model_for(intermediate_size=48)
    with pytest.raises(ValueError, match=r"in the model and .* in the GGUF"):
        exported = hf_posenc.export(other, "llama.cpp")
        gguf_file.write_gguf(gguf_file.open_gguf(base), exported, tmp_path / "new.gguf", other.state_dict())
    assert not (tmp_path / "new.gguf").exists()


def test_half_precision_stays(base, tmp_path):
    model = model_for().to(torch.bfloat16)
    path = gguf_file.write_gguf(gguf_file.open_gguf(base), hf_posenc.export(model, "llama.cpp"), tmp_path / "x.gguf", model.state_dict())
    kinds = {tensor.tensor_type.name for tensor in gguf_file.open_gguf(path).tensors if len(tensor.shape) > 1}
    assert kinds == {"BF16"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name).state_dict()
    assert all(torch.equal(loaded[name], weight.float()) for name, weight in model.state_dict().items())


def test_what_is_no_gguf_is_said(tmp_path, capsys):
    (tmp_path / "x.gguf").write_bytes(b"nothing of the kind")
    assert cli.main(["export", str(tmp_path / "x.gguf"), "--encoding", "nope"]) == 1
    assert "is no GGUF file" in capsys.readouterr().err


# -- command line -----------------------------------------------------------------------------------------------------


def test_entries_are_written_as_json_and_the_command_has_them(tmp_path, capsys):
    folder, patch = save_tiny(tmp_path / "model"), tmp_path / "patch.json"
    assert cli.main(["export", str(folder), "--to", "vllm", "--encoding", "yarn:factor=2", "--output", str(patch)]) == 0
    said = capsys.readouterr().out
    entries = json.loads(patch.read_text())
    assert entries["max_position_embeddings"] == 128 and entries["rope_parameters"]["factor"] == 2
    assert json.loads(re.search(r"--hf-overrides '(.*)' --max-model-len 128", said)[1]) == entries


def test_a_checkpoint_of_ours_is_exported_as_it_is(tmp_path, capsys):
    """What stock transformers does not know by name is a stock checkpoint all the same, as a table."""
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "model"))
    hf_posenc.patch(model, "ntk_mixed", factor=2.0).save_pretrained(tmp_path / "ours")
    here = log_probs(model, list(range(3, 60)))
    assert cli.main(["export", str(tmp_path / "ours"), "--to", "transformers", "--output", str(tmp_path / "stock")]) == 0
    assert "'ntk_mixed' is carried as a table" in capsys.readouterr().out
    assert json.loads((tmp_path / "stock" / "config.json").read_text())["model_type"] == "llama"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    torch.testing.assert_close(log_probs(loaded, list(range(3, 60))), here, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "words, message",
    [
        (["model"], "--to says which library"),
        (["model.gguf", "--to", "vllm"], "a GGUF is read by llama.cpp"),
        (["model", "--to", "vllm", "--check"], "--check and --server URL go together"),
        (["model", "--to", "vllm", "--gguf", "x.gguf"], "--gguf BASE.gguf is what is written again"),
        (["model", "--to", "llama.cpp", "--output", "folder"], "llama.cpp needs a GGUF"),
        (["model", "--to", "vllm", "--check", "--server", "u", "--freeze-at", "9"], "--check compares with the model here"),
    ],
)
def test_flags_that_do_not_go_together(words, message, capsys):
    assert cli.main(["export", *words]) == 1
    assert message in capsys.readouterr().err


# -- the table of the README --------------------------------------------------------------------------------------------


def cell(name, engine):
    """What becomes of an encoding in an engine, in a word."""
    model = patched(name) if name != "stock" else model_for()
    try:
        carried = hf_posenc.export(model, engine, freeze_at=100 if name in FROZEN else None).carried
    except ValueError:
        return "refused"
    if name in FROZEN:
        return "frozen"
    return "carried" if "table" not in carried else "as a table"


def test_the_readme_says_what_is_carried_where():
    engines = ["transformers", "vllm", "sglang", "llama.cpp", "mlx"]
    assert set(engines) == set(ENGINES)
    rows: dict[tuple, list[str]] = {}
    for scheme in ["stock", *SCHEMES, *FROZEN, *BEYOND]:
        rows.setdefault(tuple(cell(scheme, engine) for engine in engines), []).append(f"`{scheme}`")
    header = "| encoding | " + " | ".join(engines) + " |\n|---|" + "---|" * len(engines)
    table = "\n".join([header, *(f"| {', '.join(names)} | {' | '.join(cells)} |" for cells, names in rows.items())])
    assert table in README.read_text(), table
