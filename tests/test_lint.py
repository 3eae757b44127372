"""What engines make of a configuration, what is lost there, and what is mended: beside transformers, and the readers of engines."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
import yaml
from engines import model_for, save_base
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import hf_posenc
from hf_posenc import cli
from hf_posenc.compat import nested_keys
from hf_posenc.exporting import ENGINES, Export, gguf_file
from hf_posenc.exporting.rotation import geometry_of
from hf_posenc.linting.served import POSITIONS

THETA = 500_000.0
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 64}
PLAIN = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SIZES, "max_position_embeddings": 4096}
OLD = PLAIN | {"rope_theta": THETA}
"""A configuration under the names of transformers 4, which all read."""
NEW = PLAIN | {"rope_parameters": {"rope_type": "default", "rope_theta": THETA}}
"""The same as transformers 5 writes it."""
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MIDDLE = LLAMA3 | {"original_max_position_embeddings": 1024}
KINDS = PLAIN | {"model_type": "olmo3", "architectures": ["Olmo3ForCausalLM"], "layer_types": ["full_attention", "sliding_attention"]}
"""A model whose layers turn in two ways."""


def rules(entries, severity=None, engines=()):
    """What is found, by rule and place, without notes."""
    found = hf_posenc.lint(entries, engines).findings
    return {finding.rule for finding in found if finding.severity != "note" and severity in (None, finding.severity)}


def finding(entries, rule, engines=()):
    """The one finding of a rule."""
    (found,) = [each for each in hf_posenc.lint(entries, engines).findings if each.rule == rule]
    return found


def reading(entries, engine, layers=""):
    """What an engine makes of it."""
    (served,) = [each for each in hf_posenc.lint(entries).served if (each.engine, each.layers) == (engine, layers)]
    return served.reading


def in_transformers(folder):
    """Frequencies and the factor of the model that transformers builds."""
    rotary = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).model.rotary_emb
    return rotary.inv_freq, rotary.attention_scaling


@pytest.fixture
def written(tmp_path):
    """A folder with a config.json."""

    def write(entries):
        (tmp_path / "config.json").write_text(json.dumps(entries, indent=2))
        return tmp_path

    return write


# -- what is in order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entries",
    [
        OLD,
        OLD | {"rope_scaling": YARN},
        OLD | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}},
        OLD | {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192}, "max_position_embeddings": 32_768},
        NEW | {"rope_theta": THETA},
    ],
)
def test_what_all_engines_read_alike(entries):
    found = hf_posenc.lint(entries)
    assert found.passed and not rules(entries)
    assert [each.engine for each in found.served] == ["transformers", "llama.cpp", "mlx", "sglang", "vllm"]
    one, *others = [each.reading for each in found.served]
    assert all(not other.differs(one) for other in others)


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 2.0}, YARN, MIDDLE])
def test_the_numbers_are_those_of_the_model_of_transformers(scaling, written):
    entries = OLD | {"rope_scaling": scaling}
    frequencies, factor = in_transformers(written(entries))
    found = hf_posenc.lint(written(entries))
    assert torch.equal(reading(entries, "transformers").frequencies, frequencies)
    (told,) = [each for each in found.to_dict()["engines"] if each["engine"] == "transformers"]
    assert told["first"] == pytest.approx(2 * math.pi / frequencies[0].item()) and told["attention_factor"] == pytest.approx(factor)
    assert told["last"] == pytest.approx(2 * math.pi / frequencies[-1].item()) and told["context_length"] == 4096


SMALL = {**SIZES, "hidden_size": 256, "intermediate_size": 64}
FOUR = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 128, "head_dim": 64}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (
            {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 32_768, "rope_theta": 1e6}
            | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}},
            {"context"},
        ),
        (
            {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "max_position_embeddings": 131_072, "rope_theta": 1e6}
            | {"rope_local_base_freq": 1e4, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, **FOUR},
            set(),
        ),
        (
            {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "max_position_embeddings": 131_072, "rope_theta": 1e4}
            | {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}, "pad_token_id": 0}
            | {"original_max_position_embeddings": 4096},
            {"by-length"},
        ),
        (
            {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "max_position_embeddings": 131_072, "rope_theta": 150_000}
            | {"rope_scaling": YARN | {"factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}, **FOUR},
            {"other-engine"},
        ),
        (
            {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"], "rope_theta": 1e6}
            | {
                "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
                "vision_config": {"depth": 1, "embed_dim": 32, "num_heads": 2},
            },
            set(),
        ),
        (
            {"model_type": "gptj", "architectures": ["GPTJForCausalLM"], "n_embd": 256, "n_head": 4, "n_layer": 2, "rotary_dim": 32},
            set(),
        ),
    ],
    ids=lambda each: each["model_type"] if isinstance(each, dict) else "",
)
def test_configurations_of_the_field(entries, expected):
    """As their authors have published them, but for sizes."""
    assert rules({**SMALL, **entries}) == expected


def test_what_is_not_read_is_no_finding():
    """The code of llama.cpp for `mscale_all_dim`."""
    entries = OLD | {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}
    (served,) = [each for each in hf_posenc.lint(entries).served if each.engine == "llama.cpp"]
    assert served.unread and served.reading is None and not rules(entries)


# -- one trap each ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "rule", "what"),
    [
        (OLD | {"rope_scaling": {"rope_type": "yran", "factor": 2.0}}, "scaling", "the rope_type 'yran'"),
        (OLD | {"rope_scaling": {"rope_type": "linear"}}, "scaling", "no factor"),
        (OLD | {"rope_scaling": YARN | {"factor": 8.0}}, "scaling", "the lengths say 4"),
        (OLD | {"rope_scaling": {"factor": 8.0}}, "scaling", "no rope_type: nothing is scaled"),
        (NEW | {"rope_scaling": YARN}, "both-names", "transformers takes rope_scaling"),
        (NEW | {"rope_theta": 10_000.0}, "theta-twice", "transformers takes 500000, MLX what stands at the top level"),
        (NEW | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "theta-lost", "it is 500000 there, and transformers takes 10000"),
        (PLAIN | {"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "theta-lost", "it is null there"),
        (NEW, "one-name", "lost there, without a word: a theta of 500000"),
        (OLD | {"factor": 4.0, "rope_type": "yarn"}, "stray", "read by nothing"),
        (OLD | {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}, "two-types", "MLX the former, vLLM refuses both"),
        (PLAIN | {"rope_parameters": {"full_attention": YARN}}, "layer-types", "no layers of the kind 'full_attention'"),
        (OLD | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "native-length", "may be the stretched length, and MLX 4096"),
        (OLD | {"rope_scaling": YARN | {"original_max_position_embeddings": 4096}}, "context", "the scaling is for 16384"),
        (
            OLD | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "original_max_position_embeddings": 2048},
            "double-scaling",
            "stretched length (2048 x 2), and vLLM and SGLang multiply it again: 8192",
        ),
        (OLD | {"rope_scaling": MIDDLE}, "native-place", "it takes 8192"),
        (
            OLD | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 1024},
            "native-place",
            "it takes 4096",
        ),
        (OLD | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "by-length", "llama.cpp drops the scaling"),
    ],
)
def test_a_trap(entries, rule, what):
    assert what in finding(entries, rule).what
    assert rule not in rules(OLD)


def test_what_transformers_loses_it_loses(written):
    """The traps that speak of transformers, seen in it."""
    assert AutoConfig.from_pretrained(written(NEW | {"rope_scaling": YARN})).rope_parameters["rope_theta"] == 10_000.0
    assert AutoConfig.from_pretrained(written(OLD | {"rope_type": "yarn", "factor": 4.0})).rope_parameters["rope_type"] == "default"
    null = AutoConfig.from_pretrained(written(PLAIN | {"rope_parameters": {"rope_type": "default", "rope_theta": None}}))
    with pytest.raises(TypeError):
        AutoModelForCausalLM.from_config(null)
    nested = AutoConfig.from_pretrained(written(OLD | {"rope_parameters": {"full_attention": YARN}}))
    assert nested.rope_parameters["rope_type"] == "default"


def kinds(**changes):
    """Parameters for both kinds of layers."""
    full = YARN | {"rope_theta": THETA} | changes
    return KINDS | {"rope_parameters": {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}


def test_truncate_of_one_kind_of_layers(written):
    """transformers gives the same frequencies with and without it, and others where it stands at the top; vLLM goes by it."""
    config = AutoConfig.from_pretrained(written(kinds(truncate=False)))
    ignored, _ = ROPE_INIT_FUNCTIONS["yarn"](config, layer_type="full_attention")
    config = AutoConfig.from_pretrained(written(OLD | {"rope_scaling": YARN | {"truncate": False}}))
    meant, _ = ROPE_INIT_FUNCTIONS["yarn"](config)
    assert not torch.allclose(ignored, meant)
    found = finding(kinds(truncate=False), "truncate")
    assert found.where == "rope_parameters.full_attention.truncate" and "truncate" not in rules(kinds())
    torch.testing.assert_close(reading(kinds(truncate=False), "transformers", "full_attention").frequencies, ignored)
    torch.testing.assert_close(reading(kinds(truncate=False), "vllm", "full_attention").frequencies, meant)
    assert {"other-engine"} == rules(kinds(truncate=False), engines=["vllm"]) - {"truncate"}


def test_layers_of_two_kinds():
    found = hf_posenc.lint(kinds())
    assert found.passed and {each.layers for each in found.served} == {"full_attention", "sliding_attention"}
    assert [each.refusal for each in found.served if each.engine == "mlx"] == 2 * [
        "it has code of its own for families with layers of several kinds, which is not read here"
    ]
    beside = kinds()
    beside["rope_parameters"]["factor"] = 2.0
    assert "nothing reads it" in finding(beside, "layer-types").what
    alike = kinds() | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    assert any("all layers turn alike" in each.what for each in hf_posenc.lint(alike).findings)


@pytest.mark.parametrize(
    "changes",
    [
        {"text_config": 3},
        {"rope_scaling": {"rope_type": []}},
        {"rope_scaling": {"rope_type": "yarn", "factor": "x", "original_max_position_embeddings": []}},
        {"rope_theta": "500000"},
        {"max_position_embeddings": "x"},
        {"rope_parameters": {"full_attention": {}, "rope_theta": None}},
        {"model_type": None},
    ],
)
def test_what_makes_no_sense_is_told_as_the_rest(changes):
    found = hf_posenc.lint(OLD | changes)
    assert not found.passed and json.dumps(found.to_dict()) and str(found)


def test_a_head_with_one_pair():
    (found, *_) = hf_posenc.lint(OLD | {"head_dim": 2}).to_dict()["engines"]
    assert found["first"] == found["last"] == pytest.approx(2 * math.pi) and found["pairs"] == 1


# -- engines beside transformers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["sglang", "mlx", "llama.cpp"])
def test_a_factor_on_cos_and_sin_that_others_do_not_read(engine):
    """`ntk_by_parts`: YaRN with the factor 1, under both names."""
    entries = OLD | {"rope_scaling": YARN | {"attention_factor": 1.0}}
    assert "the factor on cos and sin is 1.13863, not 1" in finding(entries, "other-engine", [engine]).what
    assert not rules(entries, engines=["vllm"]) and reading(entries, "transformers").attention_factor == 1


def test_the_converter_of_llama_cpp_writes_keys_that_are_not_read():
    """A factor of one's own, and ends of the ramp; tests/test_engines.py runs it."""
    entries = OLD | {"rope_scaling": YARN | {"beta_slow": 0.1, "attention_factor": 1 + 0.1 * math.log(4)}}
    assert "frequencies are off" in finding(entries, "other-engine", ["llama.cpp"]).what
    assert torch.equal(reading(entries, "llama.cpp").frequencies, reading(OLD | {"rope_scaling": YARN}, "llama.cpp").frequencies)
    entries["rope_scaling"].pop("beta_slow")
    assert not rules(entries, engines=["llama.cpp"])


def test_the_converter_of_llama_cpp_takes_another_native_length():
    entries = OLD | {"rope_scaling": MIDDLE}
    wrong, _ = ROPE_INIT_FUNCTIONS["llama3"](
        AutoConfig.for_model(**OLD, rope_parameters=LLAMA3 | {"rope_theta": THETA, "original_max_position_embeddings": 8192})
    )
    torch.testing.assert_close(reading(entries, "llama.cpp").frequencies, wrong)
    assert not torch.allclose(reading(entries, "transformers").frequencies, wrong)


def test_what_transformers_refuses_is_left_out_by_the_converter_without_a_word():
    entries = OLD | {"rope_scaling": {"rope_type": "yran", "factor": 2.0}}
    assert "left out without a word" in finding(entries, "other-engine").what
    served = {each.engine: each.refusal for each in hf_posenc.lint(entries).served}
    assert [name for name, refusal in served.items() if not refusal] == ["llama.cpp"]


def test_what_an_engine_refuses():
    """vLLM: two schemes under two names, unless one is what the other was called. All: one that lacks its factor."""

    def refusals(scaling):
        return {each.engine: each.refusal for each in hf_posenc.lint(OLD | {"rope_scaling": scaling}).served}

    told = refusals({"type": "linear", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024})
    assert told["vllm"] == "it refuses a `type` of 'linear' beside a `rope_type` of 'yarn'" and not told["sglang"]
    assert not refusals({"type": "mrope", "rope_type": "default"})["vllm"]
    lacking = refusals({"rope_type": "linear"})
    assert all("linear' has no factor" in lacking[engine] for engine in ("vllm", "sglang", "mlx"))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_context_that_is_multiplied(engine):
    found = finding(OLD | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "other-context", [engine])
    assert found.severity == "warning" and found.what == "the context is 8192 tokens, not 4096"
    assert hf_posenc.lint(OLD | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}).passed


def test_only_the_engines_that_are_asked_for():
    assert not hf_posenc.lint(NEW).passed and hf_posenc.lint(NEW, ["vllm", "sglang"]).passed
    assert [each.engine for each in hf_posenc.lint(NEW, ["vllm"]).served] == ["transformers", "vllm"]
    with pytest.raises(ValueError, match=r"unknown engine 'vlm'\. Did you mean 'vllm'"):
        hf_posenc.lint(NEW, ["vlm"])


@pytest.mark.parametrize(("dtype", "length"), [("bfloat16", 4096), ("bfloat16", 131_072), ("float16", 4096)])
def test_phases_in_sixteen_bits(dtype, length):
    """The number that is told, beside cosines and sines in float64."""
    entries = OLD | {"torch_dtype": dtype, "max_position_embeddings": length}
    (found,) = [each for each in hf_posenc.lint(entries).findings if each.rule == "phase"]
    assert found.where == "transformers, vllm" and found.severity == "note"
    frequencies = reading(entries, "transformers").frequencies
    positions = torch.arange(length - POSITIONS, length)[:, None]
    exact = torch.polar(torch.ones(1).double(), positions.double() * frequencies.double())
    table = positions.float() * frequencies
    rounded = torch.complex(*(part.to(getattr(torch, dtype)).double() for part in (table.cos(), table.sin())))
    worst = float((rounded / exact).angle().abs().max())
    assert f"off by up to {worst:.2g} rad" in found.what and 1e-4 < worst < 0.02
    tokens = int((torch.arange(length).to(getattr(torch, dtype)).double() - torch.arange(length)).abs().max())
    assert f"by {tokens} tokens" in found.what
    assert not [each for each in hf_posenc.lint(entries | {"torch_dtype": "float32"}).findings if each.rule == "phase"]


# -- mending -----------------------------------------------------------------------------------------------------------------


MENDED = {
    "one name": NEW,
    "one name of a scaling": PLAIN | {"rope_parameters": YARN | {"rope_theta": THETA}},
    "theta beside another scheme": NEW | {"rope_scaling": {"rope_type": "default"}},
    "null": OLD | {"rope_parameters": {"rope_type": "default", "rope_theta": None}},
    "stray": OLD | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "stray beside a scheme": OLD | {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 1024}, "factor": 4.0},
    "native length of llama3": OLD | {"rope_scaling": MIDDLE},
    "native length": OLD | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 1024},
}


@pytest.mark.parametrize("name", MENDED)
def test_what_is_certain_is_mended(name, written):
    """Nothing is found in the result; what was there stays, in its order; transformers reads what all engines read."""
    entries = MENDED[name] | {"an_entry_of_somebody_else": {"b": 1, "a": [None, "ü"]}}
    folder = written(entries)
    assert hf_posenc.lint(folder).mendable
    found = hf_posenc.lint(folder, fix=True)
    now = json.loads((folder / "config.json").read_text())
    assert found.mended and not rules(now) and not hf_posenc.lint(folder).mendable
    kept = [key for key in now if key in entries]
    assert kept == [key for key in entries if key in now] and now["an_entry_of_somebody_else"] == entries["an_entry_of_somebody_else"]
    frequencies, factor = in_transformers(folder)
    assert all(not each.reading.differs(reading(now, "transformers")) for each in found.served)
    torch.testing.assert_close(reading(now, "mlx").frequencies, frequencies, rtol=1e-6, atol=0)
    assert factor == pytest.approx(reading(now, "mlx").attention_factor)


@pytest.mark.parametrize("name", ["one name", "one name of a scaling", "native length", "native length of llama3"])
def test_a_mended_file_is_the_same_model_in_transformers(name, written):
    before = in_transformers(written(MENDED[name]))
    hf_posenc.lint(written(MENDED[name]), fix=True)
    after = in_transformers(written(MENDED[name]))
    assert torch.equal(before[0], after[0]) and before[1] == after[1]


def test_mlx_reads_the_mended_file(written):
    rope = pytest.importorskip("mlx_lm.models.rope_utils", reason="mlx-lm is not installed: pip install 'hf_posenc[engines]'")
    llama = pytest.importorskip("mlx_lm.models.llama")

    def theirs():
        sizes = {"intermediate_size": 8, "rms_norm_eps": 1e-5}
        given = llama.ModelArgs.from_dict(json.loads((folder / "config.json").read_text()) | sizes)
        made = rope.initialize_rope(16, given.rope_theta, False, given.rope_scaling, given.max_position_embeddings)
        return 1 / torch.tensor(made._freqs.tolist()) if hasattr(made, "_freqs") else made.base

    folder = written(MENDED["one name of a scaling"])
    assert theirs() == 10_000.0
    hf_posenc.lint(folder, fix=True)
    torch.testing.assert_close(theirs(), in_transformers(folder)[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "entries",
    [
        OLD | {"factor": 4.0},
        OLD | {"rope_scaling": YARN | {"factor": 8.0}},
        NEW | {"rope_theta": 10_000.0},
        OLD | {"rope_scaling": {"rope_type": "yran", "factor": 2.0}},
        kinds(truncate=False),
        PLAIN | {"rope_parameters": {"rope_type": "default", "rope_theta": None}},
    ],
)
def test_what_is_not_certain_is_left(entries, written):
    folder = written(entries)
    found = hf_posenc.lint(folder, fix=True)
    assert not found.passed and not found.mended and json.loads((folder / "config.json").read_text()) == entries


def test_the_part_of_a_model_of_images_and_text_is_mended(written):
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    folder = written(
        {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": NEW, "vision_config": vision}
    )
    found = hf_posenc.lint(folder, ["mlx"], fix=True)
    now = json.loads((folder / "config.json").read_text())
    assert [each.rule for each in found.mended] == ["one-name"] and found.passed
    assert now["text_config"]["rope_theta"] == THETA and "rope_theta" not in now


def test_a_file_is_whole_or_as_it_was(written, monkeypatch):
    folder = written(NEW)
    before = (folder / "config.json").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        hf_posenc.lint(folder, fix=True)
    assert (folder / "config.json").read_bytes() == before and [path.name for path in folder.iterdir()] == ["config.json"]


# -- training files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def training(written, tmp_path):
    """A YAML file beside a base, linted."""

    def run(base=OLD, **said):
        folder = written(base)
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump({key: str(folder) if value == "BASE" else value for key, value in said.items()}))
        return hf_posenc.lint(path)

    return run


def of(found, rule):
    return [each for each in found.findings if each.rule == rule]


def test_axolotl(training, written):
    """What it sets on the configuration of the base, and what transformers makes of that."""
    override = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    found = training(base_model="BASE", overrides_of_model_config={"rope_scaling": override})
    (lost,) = of(found, "theta-lost")
    assert lost.where == "overrides_of_model_config.rope_scaling" and f"rope_theta: {THETA}" in lost.advice
    config = AutoConfig.from_pretrained(written(OLD))
    with pytest.warns(FutureWarning, match="rope_theta"):
        config.rope_scaling = dict(override)
    assert config.rope_parameters["rope_theta"] is None
    with pytest.warns(FutureWarning, match="rope_theta"):
        config.rope_scaling = {"rope_type": "yarn", "factor": 4.0}
    native = config.rope_parameters["original_max_position_embeddings"]
    stretched = training(base_model="BASE", sequence_len=16_384, model_config={"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})
    assert stretched.document.entries["rope_parameters"]["original_max_position_embeddings"] == native == 4096
    assert stretched.document.entries["max_position_embeddings"] == 16_384
    found = training(base_model="BASE", overrides_of_model_config={"rope_scaling": override | {"rope_theta": THETA}}, sequence_len=4096)
    assert not of(found, "theta-lost") and not of(found, "unscaled")
    config.rope_parameters = override | {"rope_theta": THETA}
    frequencies = AutoModelForCausalLM.from_config(config).model.rotary_emb.inv_freq
    (here,) = [each.reading for each in found.served if each.engine == "transformers"]
    assert torch.equal(here.frequencies, frequencies)


def test_axolotl_in_other_places(training):
    found = training(base_model="BASE", rope_scaling={"rope_type": "linear", "factor": 2.0, "rope_theta": THETA})
    assert "Axolotl stops at it" in of(found, "axolotl-place")[0].what
    found = training(base_model="BASE", sequence_len=16_384)
    assert "above the 4096 of the model" in of(found, "unscaled")[0].what and found.served[0].reading.context_length == 16_384
    found = training(OLD | {"rope_scaling": YARN}, base_model="BASE", model_config={"rope_scaling": YARN | {"rope_theta": THETA}})
    assert "the 'yarn' that the base was trained with" in of(found, "scaled-twice")[0].what


def test_llama_factory(training):
    """Its own example: 4096 tokens that are to become 8192."""
    found = training(model_name_or_path="BASE", stage="sft", rope_scaling="linear", cutoff_len=8192)
    here, *_ = [each.reading for each in found.served]
    assert here.context_length == 8192 and here.frequencies[0] == 0.5
    assert of(found, "double-scaling") and of(found, "theta-lost") and found.document.kind == "LLaMA-Factory"
    yarn = training(model_name_or_path="BASE", stage="sft", rope_scaling="yarn", cutoff_len=10_000)
    assert yarn.document.entries["rope_scaling"] == {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 4096}
    assert "for 12288 tokens" in of(yarn, "factory-factor")[0].what and not of(yarn, "double-scaling")


def test_llama_factory_in_other_ways(training):
    def only(rule, **said):
        (found,) = of(training(said.pop("base", OLD), model_name_or_path="BASE", stage="sft", **said), rule)
        return found

    assert "nothing is scaled" in only("factory-unscaled", rope_scaling="yarn", cutoff_len=4096).what
    assert "(2048)" in only("factory-unscaled", rope_scaling="yarn").what
    assert "write one of linear, dynamic, yarn, llama3" in only("factory-name", rope_scaling="longrope").advice
    scaled = OLD | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert "scaled twice" in only("scaled-twice", base=scaled, rope_scaling="yarn", cutoff_len=8192).what
    assert "the factor is 2" in of(training(model_name_or_path="BASE", rope_scaling="yarn"), "factory-factor")[0].what
    assert not [each for each in training(model_name_or_path="BASE").findings if each.severity != "note"]


def test_a_training_file_is_not_written(training, tmp_path):
    found = training(NEW, base_model="BASE")
    assert of(found, "one-name") and not found.mendable  # the checkpoint that it will save
    with pytest.raises(ValueError, match="mended by hand"):
        hf_posenc.lint(tmp_path / "train.yaml", fix=True)
    (tmp_path / "other.yaml").write_text("lr: 1")
    with pytest.raises(ValueError, match="names no model"):
        hf_posenc.lint(tmp_path / "other.yaml")


# -- GGUF -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf_with(tmp_path_factory):
    """A GGUF of a small model with other keys, linted."""
    folder = tmp_path_factory.mktemp("gguf")
    bases = {family: save_base(model_for(family), folder / f"{family}.gguf") for family in ("llama", "qwen2")}

    def run(family="llama", table=None, **fields):
        keys = {f"{family}.{key.replace('__', '.')}": value for key, value in fields.items()}
        exported = Export("llama.cpp", "", "", "", keys, table=table)
        return hf_posenc.lint(gguf_file.write_gguf(gguf_file.open_gguf(bases[family]), exported, folder / "new.gguf"))

    return run


STRETCHED = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "context_length": 256}


def test_a_gguf(gguf_with):
    found = gguf_with(**STRETCHED, rope__scaling__original_context_length=64)
    assert found.passed and not found.findings and found.document.kind == "GGUF"
    (served,) = found.served
    exported = hf_posenc.export(hf_posenc.patch(model_for(), "ntk_by_parts", factor=4.0), "llama.cpp")
    keys = {key.removeprefix("llama."): value for key, value in exported.fields.items()}
    meant = ENGINES["llama.cpp"]().read(keys, geometry_of(model_for().config.to_dict()))
    torch.testing.assert_close(served.reading.frequencies, meant.frequencies)
    assert served.reading.attention_factor == pytest.approx(1 + 0.1 * math.log(4)) and served.reading.context_length == 256


def test_traps_of_a_gguf(gguf_with):
    assert "may be the stretched one" in of(gguf_with(**STRETCHED), "native-length")[0].what
    native = {"rope__scaling__original_context_length": 64}
    assert "the lengths say 4" in of(gguf_with(**STRETCHED | {"rope__scaling__factor": 2.0}, **native), "scaling")[0].what
    twice = gguf_with(**STRETCHED, **native, rope__scaling__attn_factor=1 + 0.1 * math.log(4))
    assert "1.296 on cos and sin, not 1.139" in of(twice, "double-scaling")[0].what and not twice.passed
    for key, value in {"yarn_attn_factor": 1.0, "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0}.items():
        assert of(gguf_with(**STRETCHED, **native, **{f"rope__scaling__{key}": value}), "unread-key")[0].where == f"rope.scaling.{key}"
    assert not of(gguf_with(**STRETCHED, **native, rope__scaling__yarn_attn_factor=1 + 0.1 * math.log(4)), "unread-key")
    assert "takes 10000" in of(gguf_with(rope__freq_base=None), "theta-lost")[0].what
    assert of(gguf_with(rope__scaling__type="longrope"), "by-length")
    table = torch.full((8,), 2.0)
    assert of(gguf_with("qwen2", table), "table") and not of(gguf_with("llama", table), "table")
    assert gguf_with("llama", table).served[0].reading.frequencies[0] == 0.5


# -- the command ----------------------------------------------------------------------------------------------------------------


def test_the_command(written, tmp_path, capsys):
    """Exit status 0 without errors, 1 with one, and after a mistake."""
    folder = str(written(OLD))
    assert cli.main(["lint", folder]) == 0
    assert "transformers" in capsys.readouterr().out
    folder = str(written(NEW))
    assert cli.main(["lint", folder, "--engine", "vllm"]) == 0
    assert cli.main(["lint", folder, "--output", str(tmp_path / "out.json")]) == 1
    assert capsys.readouterr().err == f"error: {folder} will not everywhere be what it says (one-name)\n"
    told = json.loads((tmp_path / "out.json").read_text())
    assert not told["passed"] and told["findings"][0]["rule"] == "one-name" and told["findings"][0]["mendable"]
    assert told["engines"][2] == {
        **{"engine": "mlx", "layers": "", "pairs": 8, "attention_factor": 1.0, "context_length": 4096},
        **{"first": pytest.approx(2 * math.pi), "last": pytest.approx(2 * math.pi * 10_000 ** (14 / 16))},
    }
    capsys.readouterr()
    assert cli.main(["lint", folder, "--fix"]) == 0
    assert "mended (one-name)" in capsys.readouterr().out and cli.main(["lint", folder]) == 0
    assert cli.main(["lint", folder, "--fix"]) == 0
    assert "nothing is certain" in capsys.readouterr().out
    assert cli.main(["lint", str(tmp_path / "nothing.json")]) == 1
    with pytest.raises(SystemExit):
        cli.main(["lint", "--help"])
    assert "Exit status: 0 if no finding is an error" in " ".join(capsys.readouterr().out.split())


def test_weights_are_not_read(written):
    """A folder with a file of weights that is none."""
    folder = written(OLD)
    (folder / "model.safetensors").write_bytes(b"no weights")
    assert hf_posenc.lint(folder).passed and hf_posenc.lint(str(folder / "config.json")).passed


def test_what_else_is_a_configuration(tmp_path):
    assert "one-name" in rules(AutoConfig.for_model(**NEW))
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        hf_posenc.lint(tmp_path / "folder")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no entries"):
        hf_posenc.lint(tmp_path / "list.json")
    with pytest.raises(ValueError, match="mended by hand"):
        hf_posenc.lint(OLD, fix=True)


def test_a_checkpoint_of_ours(tmp_path):
    hf_posenc.patch(model_for(), "alibi").save_pretrained(tmp_path)
    assert rules(tmp_path) == {"hf_posenc"} and "alibi on layers 0-2" in finding(tmp_path, "hf_posenc").what


def test_a_family_without_rotation():
    found = hf_posenc.lint({"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 1, "vocab_size": 64})
    assert found.passed and not found.served and [each.rule for each in found.findings] == ["no-rotation"]


def test_kinds_of_layers_are_found_without_the_method_of_newer_transformers():
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
    older = SimpleNamespace(layer_types=config.layer_types)
    for parameters in (config.rope_parameters, {"rope_type": "default", "rope_theta": 1e4}, {"full_attention": {}, "chunked": {}}):
        assert nested_keys(older, parameters) == nested_keys(config, parameters)
    assert len(nested_keys(older, config.rope_parameters)) == 2
