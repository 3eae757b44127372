"""The main job from the outside, at a size of seconds."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_posenc import comparison
from hf_posenc.command import parse

ROOT = Path(__file__).parents[1]
SMALL = ["--steps", "3", "--batch_size", "2", "--train_length", "16", "--eval_tokens", "256", "--hidden_size", "16", "--layers", "1"]


def arguments(output, *more):
    return ["--encodings", "learned", "alibi", "--output_dir", str(output), *SMALL, *more]


def runs(output):
    return {path.name.split("-")[0]: json.loads(path.read_text()) for path in output.glob("*.json")}


@pytest.mark.parametrize("layout", ["gpt2", "llama"])
def test_the_recipe_as_a_command(layout, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "recipes" / "compare.py"), *arguments(tmp_path, "--model-type", layout)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found = runs(tmp_path)
    assert set(found) == {"learned", "alibi"}
    assert set(found["alibi"]["nats"]) == {"16", "32", "64", "128"} and all(found["alibi"]["nats"].values())
    assert found["learned"]["nats"]["16"] and found["learned"]["nats"]["32"] is None  # past its table
    assert found["learned"]["fingerprint"] != found["alibi"]["fingerprint"]
    with open(tmp_path / "compare.csv") as file:
        rows = {row["encoding"]: row for row in csv.DictReader(file)}
    assert rows["learned"]["128"] == "" and float(rows["alibi"]["128"]) > 1
    assert "not defined at that length" in done.stdout
    assert re.search(r"^alibi: perplexity .* at 128$", done.stdout, re.MULTILINE)
    assert (tmp_path / "compare.png").stat().st_size > 1000


def test_finished_runs_are_taken_and_the_same_settings_give_the_same_numbers(tmp_path):
    assert comparison.main(arguments(tmp_path)) == 0
    first = runs(tmp_path)
    assert comparison.main(arguments(tmp_path)) == 0
    assert runs(tmp_path) == first  # seconds and all: nothing was trained again
    assert comparison.main(arguments(tmp_path, "--overwrite")) == 0
    second = runs(tmp_path)
    assert second["alibi"]["nats"] == first["alibi"]["nats"]
    assert second["alibi"]["train_seconds"] != first["alibi"]["train_seconds"]


def test_options_reach_their_encoding(tmp_path):
    (given,) = parse(
        [comparison.CompareArguments],
        "compare",
        ["--encodings", "kerple", "sinusoidal", "--option", "kerple.kernel=power", "sinusoidal.scale=0.5", *SMALL],
    )
    assert comparison.read_options(given) == {"kerple": {"kernel": "power"}, "sinusoidal": {"scale": 0.5}}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--encodings", "alibi", "rop"], "Did you mean 'rope'"),
        (["--option", "rope.theta=3"], "not encoding.key=value"),
        (["--option", "alibi.slope=3"], "has no option 'slope'"),
        (["--eval_tokens", "100"], "less than the longest test of 128"),
        (["--eval_tokens", "100000000"], "100,000,016 are needed"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--text", "gone.txt"], "gone.txt"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(tmp_path, capsys, more, message):
    assert comparison.main(arguments(tmp_path / "out", *more)) == 1
    err = capsys.readouterr().err.strip().split("\n")[-1]
    assert err.startswith("error: ") and message in err
    assert not (tmp_path / "out").exists()
