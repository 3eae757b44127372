"""The main job from the outside, at a size of seconds."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import save_tiny
from transformers import AutoTokenizer

import hf_posenc
from hf_posenc import comparison
from hf_posenc.encodings import ENCODINGS
from hf_posenc.flags import CONFIGS, parse

ROOT = Path(__file__).parents[1]
SMALL = ["--steps", "3", "--batch_size", "2", "--train_length", "16", "--eval_tokens", "256", "--hidden_size", "16", "--num_layers", "1"]


def arguments(output, *more):
    return ["--encoding", "learned", "alibi", "--output_dir", str(output), *SMALL, *more]


def runs(output):
    return {tuple(path.stem.split("-")[:2]): json.loads(path.read_text()) for path in output.glob("*.json")}


def command(*words):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(ROOT / "recipes" / "compare.py"), *words]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture
def register_for_now():
    """Registers encodings for the length of a test."""
    names = []

    def register(name, bias):
        @hf_posenc.register(name)
        class Encoding(hf_posenc.PositionalEncoding):
            """One that does what the test wants."""

            relative = True

            def bias(self, h, q_pos, k_pos):
                return bias((q_pos - k_pos).float())

        names.append(name)

    yield register
    for name in names:
        ENCODINGS._entries.pop(name)


def test_the_recipe_as_a_command(tmp_path):
    process = command(*arguments(tmp_path, "--seeds", "0", "1"))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = runs(tmp_path)
    assert set(found) == {(name, seed) for name in ("learned", "alibi") for seed in ("seed0", "seed1")}
    first, second = found["alibi", "seed0"], found["alibi", "seed1"]
    assert set(first["nats"]) == {"16", "32", "64", "128"} and all(first["nats"].values()) and first["nats"] != second["nats"]
    assert found["learned", "seed0"]["nats"]["16"] and found["learned", "seed0"]["nats"]["32"] is None  # past its table
    assert found["learned", "seed0"]["fingerprint"] != first["fingerprint"]
    with open(tmp_path / "compare.csv") as file:
        rows = {(row["encoding"], row["seed"]): row for row in csv.DictReader(file)}
    assert len(rows) == 4 and rows["learned", "1"]["128"] == "" and float(rows["alibi", "1"]["128"]) > 1
    with open(tmp_path / "summary.csv") as file:
        summary = {row["encoding"]: row for row in csv.DictReader(file)}
    both = [float(rows["alibi", seed]["64"]) for seed in "01"]
    assert float(summary["alibi"]["64 mean"]) == pytest.approx(sum(both) / 2, rel=1e-5)
    assert float(summary["alibi"]["64 std"]) == pytest.approx(abs(both[0] - both[1]) / 2**0.5, rel=1e-2)  # n - 1, of two
    assert "not defined at that length" in out and "sample standard deviation over seeds 0, 1" in out
    assert re.search(r"^alibi, seed 1: perplexity .* at 128$", out, re.MULTILINE)
    assert (tmp_path / "compare.png").stat().st_size > 1000 and (tmp_path / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_other_families(family, tmp_path):
    assert comparison.main(arguments(tmp_path, "--model_type", family, "--encoding", "rope", "stock")) == 0
    found = runs(tmp_path)
    assert found["rope", "seed0"]["nats"] == found["stock", "seed0"]["nats"]  # what the family comes with


@pytest.mark.slow
def test_finished_runs_are_taken_and_the_same_settings_give_the_same_numbers(tmp_path):
    assert comparison.main(arguments(tmp_path)) == 0
    first = runs(tmp_path)
    assert comparison.main(arguments(tmp_path)) == 0
    assert runs(tmp_path) == first  # seconds and all: nothing was trained again
    assert comparison.main(arguments(tmp_path, "--overwrite")) == 0
    second = runs(tmp_path)
    assert second["alibi", "seed0"]["nats"] == first["alibi", "seed0"]["nats"]
    assert second["alibi", "seed0"]["train_seconds"] != first["alibi", "seed0"]["train_seconds"]


@pytest.mark.slow
def test_a_training_that_is_killed_ends_where_it_would_have(tmp_path):
    asked = ["--encoding", "kerple", "--steps", "80", "--save_seconds", "0"]
    process = command(*arguments(tmp_path / "killed", *asked))
    deadline, states = time.monotonic() + 120, set()
    while len(states) < 2 and time.monotonic() < deadline:  # the first is whole when the second is being written, which may be torn
        states |= set(tmp_path.glob("killed/kerple-*/checkpoint-*/trainer_state.json"))
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert states and not runs(tmp_path / "killed")
    torn = states.pop().parents[1] / "checkpoint-79"  # one that the process died in, which must not be trusted
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half a file")
    assert comparison.main(arguments(tmp_path / "killed", *asked)) == 0
    assert comparison.main(arguments(tmp_path / "whole", *asked, "--save_seconds", "1000")) == 0
    resumed, whole = (runs(tmp_path / name)["kerple", "seed0"] for name in ("killed", "whole"))
    assert 0 < resumed["resumed_from"] < 79 and whole["resumed_from"] == 0
    for number in ("nats", "train_loss", "by_position", "fingerprint"):
        assert resumed[number] == whole[number]
    assert not [path for path in (tmp_path / "killed").iterdir() if path.is_dir()]  # checkpoints go when the result is there


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, capsys, register_for_now):
    register_for_now("explosive", lambda distance: distance * (torch.nan if torch.is_grad_enabled() else -1))
    assert comparison.main(arguments(tmp_path, "--encoding", "explosive", "alibi")) == 1
    out, err = capsys.readouterr()
    assert "error: 1 of 2 runs failed (explosive, seed 0: FloatingPointError: the training loss is nan at step 1" in err
    assert set(runs(tmp_path)) == {("alibi", "seed0")}
    assert "failed" in out and "training loss is nan" in next(tmp_path.glob("explosive-*.error.txt")).read_text()
    page = (tmp_path / "report.html").read_text()
    assert "1 of 2 runs" in page and "the training loss is nan" in page


@pytest.mark.slow
def test_ctrl_c_leaves_the_results_and_the_report_of_finished_runs(tmp_path, capsys, register_for_now):
    def interrupt(distance):
        if torch.is_grad_enabled() and (tmp_path / "armed").exists():
            raise KeyboardInterrupt
        return distance * -1

    register_for_now("interrupting", interrupt)
    tmp_path.joinpath("armed").touch()
    assert comparison.main(arguments(tmp_path, "--encoding", "alibi", "interrupting", "nope")) == 130
    assert "interrupted: the same command goes on from here" in capsys.readouterr().err
    assert set(runs(tmp_path)) == {("alibi", "seed0")}
    page = (tmp_path / "report.html").read_text()
    assert "1 of 3 runs" in page and "nope, seed 0</b>: not done yet" in page
    tmp_path.joinpath("armed").unlink()
    assert comparison.main(arguments(tmp_path, "--encoding", "alibi", "interrupting", "nope")) == 0


def test_a_dry_run_lists_the_runs_and_writes_nothing(tmp_path, capsys):
    assert comparison.main(arguments(tmp_path / "out", "--dry_run", "true", "--seeds", "3", "4")) == 0
    out = capsys.readouterr().out
    assert out.count("to do") == 4 and "4 runs, 0 done" in out and not (tmp_path / "out").exists()
    assert comparison.main(arguments(tmp_path / "out", "--encoding", "alibi", "--seeds", "4")) == 0
    capsys.readouterr()
    assert comparison.main(arguments(tmp_path / "out", "--dry_run", "--seeds", "3", "4")) == 0
    out = capsys.readouterr().out
    assert re.search(r"^done +alibi, seed 4 ", out, re.MULTILINE) and out.count("to do") == 3 and "4 runs, 1 done" in out


def test_fine_tuning_a_pretrained_base(tmp_path):
    base, text = save_tiny(tmp_path / "base"), tmp_path / "text.txt"
    text.write_text("Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 30)
    asked = ["--model", str(base), "--text", str(text), "--encoding", "stock", "alibi", "linear:factor=4", "--eval_multiples", "1", "4"]
    assert comparison.main(arguments(tmp_path / "out", *asked)) == 0
    found = runs(tmp_path / "out")
    assert set(found) == {("stock", "seed0"), ("alibi", "seed0"), ("linear_factor=4", "seed0")}
    assert len({run["settings"]["start"] for run in found.values()}) == len({run["settings"]["batches"] for run in found.values()}) == 1
    assert len({run["fingerprint"] for run in found.values()}) == 3
    assert all(run["settings"]["learning_rate"] == 2e-5 and all(run["nats"].values()) for run in found.values())
    assert found["stock", "seed0"]["parameters"] == found["alibi", "seed0"]["parameters"]
    (given,) = parse([comparison.CompareArguments], "hf-posenc compare", arguments(tmp_path, *asked))
    study = comparison.prepare(given)
    ids = AutoTokenizer.from_pretrained(base)(text.read_text())["input_ids"]
    assert study.corpus.test.tolist() == ids[:256] and study.corpus.blocks.flatten().tolist() == ids[256 : 256 + 3 * 2 * 16]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--encoding", "alibi", "rop"], "Did you mean 'rope'"),
        (["--encoding", "alibi", "alibi"], "named twice"),
        (["--encoding", "stock:factor=2"], "takes no options"),
        (["--option", "rope.theta=3"], "none of the encodings takes the option"),
        (["--option", "theta=3"], "alibi: "),
        (["--option", "alibi.slope=3"], "has no option 'slope'"),
        (["--encoding", "alibi:slope=3"], "has no option 'slope'"),
        (["--eval_tokens", "100"], "less than the longest test of 128"),
        (["--eval_tokens", "100000000"], "100,000,016 are needed"),
        (["--steps", "0"], "--steps must be an integer of at least 1"),
        (["--accumulate", "3"], "does not divide batch_size=2"),
        (["--seeds", "1", "1"], "seeds must be different"),
        (["--model_type", "mamba"], "not supported"),
        (["--text", "gone.txt"], "gone.txt"),
        (["--text", "gone.txt", "--dataset", "gone.jsonl"], "exclude each other"),
        (["--dataset", "gone.jsonl"], "cannot load the dataset gone.jsonl"),
        (["--model", "/no/such/model"], "/no/such/model"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(tmp_path, capsys, more, message):
    assert comparison.main(arguments(tmp_path / "out", *more)) == 1
    err = capsys.readouterr().err.strip().split("\n")[-1]
    assert err.startswith("error: ") and message in err
    assert not (tmp_path / "out").exists()


def test_a_pretrained_base_asks_for_encodings_by_name(capsys):
    assert comparison.main(["--model", "demo"]) == 1
    assert "--model needs --encoding" in capsys.readouterr().err


def test_a_study_is_one_process(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert comparison.main(arguments(tmp_path / "out")) == 1
    assert "one process" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("preset", sorted(path.stem for path in (CONFIGS / "compare").glob("*.yaml")))
def test_presets_are_complete(preset):
    (given,) = parse([comparison.CompareArguments], "hf-posenc compare", ["--preset", preset])
    for variant in comparison.read_variants(given):
        assert variant.name == "stock" or set(variant.options) <= set(hf_posenc.describe(variant.name).options)


def test_the_overnight_study_can_start(tmp_path, capsys):
    assert comparison.main(["--preset", "paper-small", "--dry_run", "--output_dir", str(tmp_path)]) == 0
    (given,) = parse([comparison.CompareArguments], "hf-posenc compare", ["--preset", "paper-small"])
    assert f"{len(given.encoding) * 3} runs, 0 done" in capsys.readouterr().out
