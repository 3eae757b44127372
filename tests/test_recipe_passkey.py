"""The passkey recipe from the outside: a subprocess, a tiny model and a byte-level tokenizer."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import heed_ctrl_c, save_tiny

from hf_posenc.evaluation.retrieval import passkey_cli as cli

RECIPE = Path(__file__).parents[1] / "recipes" / "passkey.py"
GRID = ["--lengths", "500", "600", "--depths", "3", "--trials", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def arguments(model, output, *more):
    return ["--model", str(model), "--output_dir", str(output), *GRID, *more]


def command(model, output, *more):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RECIPE.parents[1])}
    return {"args": [sys.executable, str(RECIPE), *arguments(model, output, *more)], "env": environment, "text": True}


def runs(output):
    return {found["encoding"]: found for found in (json.loads(path.read_text()) for path in output.glob("*.json"))}


def scores(run):
    return [(cell["length"], cell["depth"], cell["trials"], cell["exact"], cell["nats"]) for cell in run["cells"]]


def test_the_recipe_measures_encodings_side_by_side(model, tmp_path):
    done = subprocess.run(**command(model, tmp_path, "--encoding", "stock", "yarn", "--factor", "2"), capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = runs(tmp_path)
    assert set(found) == {"stock", "yarn"} and found["yarn"]["options"] == {"factor": 2.0}
    places = [(length, depth, 2) for length in (500, 600) for depth in (0.0, 0.5, 1.0)]
    assert [cell[:3] for cell in scores(found["stock"])] == [cell[:3] for cell in scores(found["yarn"])] == places
    assert scores(found["stock"]) != scores(found["yarn"]) and found["stock"]["fingerprint"] != found["yarn"]["fingerprint"]
    with open(tmp_path / "passkey.csv") as file:
        rows = [(row["encoding"], int(row["length"]), float(row["depth"]), int(row["trials"])) for row in csv.DictReader(file)]
    assert rows == [(name, *place) for name in ("stock", "yarn") for place in places]
    assert "yarn factor=2.0" in done.stdout and "0/6" in done.stdout
    assert not any(mark in done.stderr for mark in ("━", "it/s", "tokens/s", "Loading weights")), "no bar in a pipe"
    assert all((tmp_path / f"passkey-{name}.png").stat().st_size > 1000 for name in found)
    assert not (tmp_path / "unfinished").exists()


def test_a_second_call_measures_only_what_changed(model, tmp_path, capsys):
    assert cli.main(arguments(model, tmp_path)) == 0
    (first,) = tmp_path.glob("stock-*.json")
    written = first.stat().st_mtime_ns
    assert cli.main(arguments(model, tmp_path)) == 0
    assert "measured before" in capsys.readouterr().out and first.stat().st_mtime_ns == written
    assert cli.main(arguments(model, tmp_path, "--overwrite")) == 0
    assert first.stat().st_mtime_ns > written
    for number, more in enumerate((["--seed", "1"], ["--distractors", "1"], ["--generate"]), start=2):
        assert cli.main(arguments(model, tmp_path, *more)) == 0
        assert len(list(tmp_path.glob("stock-*.json"))) == number


def test_a_yaml_file_says_the_same_as_flags(model, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {model}\nlengths: [500, 600]\ndepths: 3\ntrials: 2\ndevice: cpu\nneedles: 2\nask: all\noutput_dir: {tmp_path / 'yaml'}\n"
    )
    assert cli.main([str(config)]) == 0
    assert cli.main(arguments(model, tmp_path / "flags", "--needles", "2", "--ask", "all")) == 0
    assert [path.name for path in (tmp_path / "yaml").glob("*.json")] == [path.name for path in (tmp_path / "flags").glob("*.json")]
    assert scores(runs(tmp_path / "yaml")["stock"]) == scores(runs(tmp_path / "flags")["stock"])


@pytest.mark.slow
def test_a_run_that_was_killed_and_then_interrupted_goes_on_each_time(model, tmp_path):
    """Killed, it leaves the journal; after Ctrl-C, also a result that says it is unfinished. The numbers are those of one run."""
    more = ["--lengths", "1000", "--trials", "20"]
    killed, _ = stopped(command(model, tmp_path, *more), tmp_path, signal.SIGKILL, lines=3)
    assert killed == -signal.SIGKILL and not runs(tmp_path)
    interrupted, out = stopped(command(model, tmp_path, *more), tmp_path, signal.SIGINT, lines=6)
    assert interrupted == 130 and "(unfinished)" in out and "goes on" in out
    partial = runs(tmp_path)["stock"]
    assert not partial["complete"] and sum(cell["trials"] for cell in partial["cells"]) == len(written(tmp_path)) < 60
    assert cli.main(arguments(model, tmp_path, *more)) == 0
    assert cli.main(arguments(model, tmp_path / "whole", *more)) == 0
    resumed, whole = runs(tmp_path)["stock"], runs(tmp_path / "whole")["stock"]
    assert resumed["complete"] and [cell[:4] for cell in scores(whole)] == [cell[:4] for cell in scores(resumed)]
    assert [cell[4] for cell in scores(whole)] == pytest.approx([cell[4] for cell in scores(resumed)], rel=1e-4)
    assert not (tmp_path / "unfinished").exists()


def stopped(process, output, how, lines):
    """Exit status and output of a process that gets a signal when its journal has that many lines."""
    process = subprocess.Popen(**process, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c)
    end = time.monotonic() + 120
    while len(written(output)) < lines:
        assert time.monotonic() < end and process.poll() is None, "it did not come that far"
        time.sleep(0.01)
    process.send_signal(how)
    out, _ = process.communicate(timeout=120)
    return process.returncode, out


def written(output):
    """The lines of the journals."""
    return [line for path in output.glob("unfinished/*.jsonl") for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--encoding", "yarm"], "yarn"),
        (["--encoding", "nope", "--factor", "2"], "none of the encodings takes the option 'factor'"),
        (["--encoding", "stock", "linear", "--factor", "-1"], "factor"),
        (["--lengths", "100", "600"], "100 tokens is too short: the words around the filler need 252"),
        (["--depths", "0.5", "2"], "values from 0 to 1"),
        (["--trials", "0"], "--trials must be an integer of at least 1"),
        (["--needles", "0"], "--needles must be an integer of at least 1"),
        (["--filler", "gone.txt"], "gone.txt"),
        (["--chat"], "no chat template"),
        (["--model", "no-such-folder"], "no-such-folder"),
    ],
)
def test_a_mistake_is_one_line_and_a_failure(model, tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(arguments(model, tmp_path / "out", *more)) == 1
    stderr = capsys.readouterr().err
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert message in line and "Traceback" not in stderr
    assert not (tmp_path / "out").exists(), "nothing is measured before the mistake is found"


@pytest.mark.slow
def test_processes_share_the_prompts(model, tmp_path):
    """Two ranks of a real torchrun: each prompt once, and the numbers of one process."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert cli.main(arguments(model, alone, "--trials", "3")) == 0
    one = command(model, shared, "--trials", "3")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *one["args"][1:]]
    done = subprocess.run(**{**one, "args": launcher}, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = runs(alone)["stock"], runs(shared)["stock"]
    assert (one["processes"], two["processes"]) == (1, 2) and done.stdout.count("written to") == 1
    assert [cell[:4] for cell in scores(one)] == [cell[:4] for cell in scores(two)]
    assert [cell[4] for cell in scores(one)] == pytest.approx([cell[4] for cell in scores(two)], rel=1e-4)
