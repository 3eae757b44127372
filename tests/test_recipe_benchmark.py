"""The benchmark from the outside, at a size of seconds; that what it compares is the same computation; how it measures."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import save_tiny
from torch.testing import assert_close

from hf_posenc.benchmarking import Comparison, Cost, cells, markdown, measure, peak_bytes
from hf_posenc.flags import parse

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "recipes" / "benchmark.py"
SMALL = ["--num_layers", "1", "--whole_layers", "1", "--native", "16", "--repeat", "1", "--steps", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("recipe_benchmark", SCRIPT)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def given(recipe, *words):
    return parse([recipe.Arguments], "recipes/benchmark.py", [*SMALL, *words])[0]


def command(*words):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, str(SCRIPT), *SMALL, *words], capture_output=True, text=True, env=environment, timeout=300)


def tables(text):
    """title -> name -> cells, of the Markdown tables in `text`."""
    found = {}
    for line in text.splitlines():
        if line.startswith("### "):
            rows = found[line[4:]] = {}
        elif line.startswith("|") and not line.startswith("| --"):
            name, *rest = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name] = rest
    return found


def test_the_recipe_as_a_command():
    parts = ("attention", "forward", "decode", "train", "alternatives", "whole")
    done = command("--parts", *parts, "--encoding", "yarn", "alibi", "--lengths", "64")
    assert done.returncode == 0, done.stderr
    found = tables(done.stdout)
    assert list(found) == [
        "Attention of one layer: x stock",
        "Forward, 1 layers: x stock",
        "Decoding one token, 1 layers: x stock",
        "Decoding one token, GPT-2: x learned",
        "Training step, 1 layers: x stock",
        "ALiBi, attention of one layer: x stock",
        "ReRoPE, attention of one layer: x stock",
        "Whole model forward, 1 layers: x stock",
    ]
    for title, rows in found.items():
        assert rows[""] == ["time, 64", "memory, 64"]
        assert all(cell.startswith("1.00 (") for cell in rows[title.rpartition(" x ")[2]])
        assert all(re.fullmatch(r"\d+\.\d\d \([\d,]+\.\d (ms|MB)\)", cell) for cells in list(rows.values())[1:] for cell in cells)
    assert list(found["Training step, 1 layers: x stock"]) == ["", "stock", "yarn", "alibi"]
    assert list(found["ALiBi, attention of one layer: x stock"]) == ["", "stock", "alibi", "position_bias=, ready", "position_bias=, made"]
    assert found["Forward, 1 layers: x stock"]["yarn"][1] == found["Forward, 1 layers: x stock"]["stock"][1]  # in the native slot


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parts", "attention", "forwards"], "--parts is one of attention, "),
        (["--encoding", "alibi", "rerop"], "Did you mean 'rerope'"),
        (["--option", "alibi.slope=3"], "has no option 'slope'"),
        (["--option", "alibi"], "not encoding.key=value"),
        (["--lengths", "64", "0"], "--lengths must be an integer of at least 1"),
        (["--repeat", "0"], "--repeat must be an integer of at least 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(recipe, capsys, words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe.run(given(recipe, *words))
    assert capsys.readouterr().out == ""


def test_the_models_reach_the_lengths_and_share_their_weights(recipe):
    arguments = given(recipe, "--option", "rerope.window=5")
    found = recipe.models(arguments, ["yarn", "rerope", "self_extend"], 1, [64])
    assert recipe.encoding_of(found["rerope"]).window == 5
    assert recipe.encoding_of(found["self_extend"]).context_length >= 64 + arguments.steps
    assert found["yarn"].config.max_position_embeddings >= 64 + arguments.steps
    addresses = {name: [w.data_ptr() for w in model.parameters()] for name, model in found.items()}
    assert addresses["yarn"] == addresses["rerope"] == addresses["stock"]


@torch.no_grad()
def test_what_is_compared_is_the_same_computation(recipe):
    """The dense forms that the encodings are measured against give what the encodings give."""
    length = 96
    found = recipe.models(given(recipe), ["alibi", "rerope", "shaw", "transformer_xl"], 1, [length])
    here = {name: recipe.attention_call(model, length)() for name, model in found.items()}
    q, k, v, _ = recipe.states(length, found["stock"])
    k, v = (x.repeat_interleave(3, 1) for x in (k, v))
    assert_close(here["stock"], torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2))
    assert_close(recipe.two_score_matrices(found["rerope"], length)(), here["rerope"])
    assert not torch.allclose(here["rerope"], here["stock"], atol=0.1)
    for call in recipe.position_bias_calls(found["stock"], recipe.encoding_of(found["alibi"]), length).values():
        assert_close(call(), here["alibi"])
    for name in ("shaw", "transformer_xl"):
        assert_close(recipe.dense_call(found[name], length)(), here[name], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_training_step_reaches_every_weight_and_leaves_no_gradients(recipe):
    model = recipe.models(given(recipe), ["t5"], 1, [32])["t5"].train()
    reached = {}
    for name, weight in model.named_parameters():
        weight.register_hook(lambda grad, name=name: reached.update({name: grad.norm()}))
    recipe.training_call(model, 32)()
    assert set(reached) == {name for name, _ in model.named_parameters()} and all(norm > 0 for norm in reached.values())
    assert all(weight.grad is None for weight in model.parameters())


@torch.no_grad()
def test_decoding_goes_on_after_the_context(recipe):
    model = recipe.models(given(recipe), [], 1, [32])["stock"]
    call = recipe.decoding_call(model, 32)
    assert [call().past_key_values.get_seq_length() for _ in range(2)] == [33, 34]


def test_a_dense_form_that_does_not_fit_is_left_out(recipe, monkeypatch, capsys):
    free = recipe.SQUARES * 4 * 9 * 64**2
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
    recipe.run(given(recipe, "--parts", "context", "alternatives", "--encoding", "shaw", "--lengths", "64", "65"))
    out = capsys.readouterr().out
    assert "shaw, dense at 65 tokens is left out" in out and "at 64 tokens" not in out
    found = tables(out)
    assert found["Contextual bias, attention of one layer: x stock"]["shaw, dense"][2:] == ["-", "-"]
    assert found["ReRoPE, attention of one layer: x stock"]["two score matrices"][2:] == ["-", "-"]
    assert found["ALiBi, attention of one layer: x stock"]["position_bias=, ready"][2:] == ["-", "-"]
    assert "-" not in found["Contextual bias, attention of one layer: x stock"]["shaw"]


@pytest.mark.slow
def test_flex_models(recipe, capsys):
    recipe.run(given(recipe, "--parts", "flex", "--encoding", "alibi", "--lengths", "160"))
    found = tables(capsys.readouterr().out)
    assert list(found) == ["Attention of one layer, flex: x stock / x stock, flex", "Forward, 1 layers, flex: x stock / x stock, flex"]
    for rows in found.values():
        assert list(rows) == ["", "stock", "stock, flex", "alibi, flex"]
        assert re.match(r"\d+\.\d\d / 1\.00 \(", rows["stock, flex"][0])


# -- measuring --------------------------------------------------------------------------------------------------------


def test_peak_bytes_counts_what_is_alive_at_once():
    megabyte, kept = 1 << 20, []

    def call():
        kept.clear()  # the second time, what the first time left is freed here
        x = torch.empty(3 * megabyte, dtype=torch.uint8)
        del x
        kept.extend(torch.empty(megabyte, dtype=torch.uint8) for _ in range(2))
        return torch.cat(kept)

    assert [peak_bytes(call, "cpu") for _ in range(3)] == [4 * megabyte] * 3
    assert peak_bytes(lambda: None, "cpu") == 0


def test_peak_bytes_sees_the_backward_pass_and_the_inside_of_kernels():
    x = torch.ones(1 << 18, requires_grad=True)
    assert peak_bytes(lambda: x.exp().sum().backward(), "cpu") >= 2 << 20  # exp's output and the gradient
    q = torch.randn(1, 1, 64, 16)
    assert peak_bytes(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q), "cpu") > q.nbytes


def test_calls_take_turns_and_the_first_of_each_is_not_timed(monkeypatch):
    order, clock = [], iter([9.0, 1.0, 2.0, 3.0, 30.0, 1.0])
    monkeypatch.setattr("hf_posenc.benchmarking.seconds", lambda call, device: (call(), next(clock))[1])
    costs = measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, "cpu")
    assert order == ["a", "b"] * 4
    assert costs["a"].seconds == 9.0 and costs["b"].seconds == 1.0


def test_what_runs_out_of_memory_is_left_out(capsys):
    def full():
        raise torch.OutOfMemoryError

    found = Comparison("T", [2], lambda length: {"stock": full, "a": lambda: torch.empty(length << 20)}).run("cpu")
    assert "stock at 2 tokens is left out" in capsys.readouterr().out
    assert re.fullmatch(r"- \([\d.]+ ms\)", tables(found)["T: x stock"]["a"][0]) and "stock" not in tables(found)["T: x stock"]


def test_on_an_accelerator_the_first_call_is_neither_timed_nor_counted(monkeypatch):
    order = []
    monkeypatch.setattr("hf_posenc.benchmarking.peak_bytes", lambda call, device: (order.append("peak"), call(), 1)[-1])
    monkeypatch.setattr("hf_posenc.benchmarking.seconds", lambda call, device: (order.append("time"), call(), 1.0)[-1])
    measure({"a": lambda: order.append("call")}, 2, "cuda")
    assert order == ["call", "peak", "call", "time", "call", "time", "call"]


def test_other_shapes_and_dtypes(recipe, capsys, monkeypatch):
    small = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setitem(recipe.SHAPES, "llama-8b", small)
    words = ["--shape", "llama-8b", "--dtype", "bfloat16", "--lengths", "64"]
    model = recipe.models(given(recipe, *words), [], 1, [64])["stock"]
    q, k, _, _ = recipe.states(64, model)
    assert (q.shape, k.shape, q.dtype, model.dtype) == ((1, 4, 64, 16), (1, 2, 64, 16), torch.bfloat16, torch.bfloat16)
    recipe.run(given(recipe, *words, "--parts", "attention", "decode", "train", "context", "alternatives", "--encoding", "alibi", "shaw"))
    out = capsys.readouterr().out
    assert out.splitlines()[0].endswith("llama-8b, bfloat16") and len(tables(out)) == 7
    assert all("-" not in row for rows in tables(out).values() for row in rows.values())


def test_a_table_of_ratios():
    costs = {8: {"stock": Cost(0.5, 1 << 20), "a": Cost(1.0, 3 << 20)}, 1024: {"stock": Cost(2.0, 0)}}
    assert tables(markdown("Title", costs, ("stock",))) == {
        "Title: x stock": {
            "": ["time, 8", "memory, 8", "time, 1,024", "memory, 1,024"],
            "stock": ["1.00 (500.0 ms)", "1.00 (1.0 MB)", "1.00 (2,000.0 ms)", "- (0.0 MB)"],
            "a": ["2.00 (1,000.0 ms)", "3.00 (3.0 MB)", "-", "-"],
        }
    }
    assert cells("stock", costs[8], ("stock", "a")) == ("1.00 / 0.50 (500.0 ms)", "1.00 / 0.33 (1.0 MB)")


def test_the_calls_are_made_for_each_length():
    made = []
    comparison = Comparison("T", [2, 1], lambda length: made.append(length) or {"stock": lambda: torch.empty(length << 20)})
    assert "1.00" in comparison.run("cpu") and made == [2, 1]


@pytest.mark.slow
def test_the_perplexity_benchmark_compares_the_same_numbers(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    sizes = ["--lengths", "32", "--window", "16", "--stride", "4", "--tokens", "48", "--repeat", "1"]
    words = [sys.executable, str(ROOT / "recipes" / "benchmark_perplexity.py"), "--model", str(save_tiny(tmp_path)), *sizes]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    prefix, sliding = ({name for name in table if name} for table in tables(done.stdout).values())
    assert prefix == {"bare forward", "perplexity", "all logits"}
    assert sliding == {"loop of the documentation", "perplexity", "decoder alone"}
    nats = {name: float(value) for name, value in re.findall(r"- (.*): ([\d.]+) nats", done.stdout)}
    assert nats["perplexity prefix 32"] == pytest.approx(nats["all logits 32"], abs=1e-4)
    assert nats["perplexity sliding 48"] == pytest.approx(nats["documentation 48"], abs=1e-4)
