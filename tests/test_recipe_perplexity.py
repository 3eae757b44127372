"""The perplexity recipe from the outside: a subprocess, a tiny model and a byte-level tokenizer."""

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
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_posenc
from hf_posenc.command import INTERRUPTED
from hf_posenc.evaluation import PROTOCOLS, perplexity
from hf_posenc.evaluation.perplexity import cli
from hf_posenc.evaluation.perplexity.protocols import create_protocol
from hf_posenc.evaluation.side_by_side import UNFINISHED
from hf_posenc.flags import parse

RECIPE = Path(__file__).parents[1] / "recipes" / "perplexity.py"
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RECIPE.parents[1])}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def arguments(model, output, *more):
    return ["--model", str(model), "--lengths", "32", "128", "--device", "cpu", "--output_dir", str(output), *more]


def files(output):
    return sorted(path.name for path in output.iterdir())


def test_the_recipe_measures_the_stock_model(model, tmp_path):
    command = [sys.executable, str(RECIPE), *arguments(model, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    run = json.loads(next(tmp_path.glob("stock-*.json")).read_text())
    assert [score["tokens_scored"] for score in run["scores"]] == [31, 127]
    assert f"{run['scores'][-1]['perplexity']:.4g}" in done.stdout
    assert not any(mark in done.stderr for mark in ("━", "it/s", "tokens/s", "Loading weights")), "no bar in a pipe"
    with open(tmp_path / "perplexity.csv") as file:
        assert [(row["encoding"], row["length"]) for row in csv.DictReader(file)] == [("stock", "32"), ("stock", "128")]
    assert (tmp_path / "perplexity.png").stat().st_size > 1000


def test_every_encoding_gets_the_options_it_takes_and_the_model_is_stock_in_between(model, tmp_path):
    names = ["yarn", "stock", "linear", "nope"]
    assert cli.main(arguments(model, tmp_path, "--encoding", *names, "--factor", "2")) == 0
    runs = {name: json.loads(next(tmp_path.glob(f"{name}-*.json")).read_text()) for name in names}
    assert runs["yarn"]["options"] == runs["linear"]["options"] == {"factor": 2.0}
    assert runs["stock"]["options"] == runs["nope"]["options"] == {}
    assert len({run["fingerprint"] for run in runs.values()}) == 4
    assert len({run["scores"][-1]["nats"] for run in runs.values()}) == 4

    loaded = AutoModelForCausalLM.from_pretrained(model)
    corpus = cli.open_corpus(
        *parse([cli.PerplexityArguments], "hf-posenc perplexity", arguments(model, tmp_path)), AutoTokenizer.from_pretrained(model), 128
    )
    assert perplexity(loaded, corpus, lengths=[128]).scores[0].nats == pytest.approx(runs["stock"]["scores"][-1]["nats"], abs=1e-5)
    hf_posenc.patch(loaded, "linear", factor=2.0)
    assert perplexity(loaded, corpus, lengths=[128]).scores[0].nats == pytest.approx(runs["linear"]["scores"][-1]["nats"], abs=1e-5)


def test_a_second_call_measures_only_what_changed(model, tmp_path, capsys):
    assert cli.main(arguments(model, tmp_path)) == 0
    (first,) = tmp_path.glob("stock-*.json")
    written = first.stat().st_mtime_ns
    assert cli.main(arguments(model, tmp_path)) == 0
    assert "measured before" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == written and not (tmp_path / UNFINISHED).exists()
    assert cli.main(arguments(model, tmp_path, "--overwrite")) == 0
    assert first.stat().st_mtime_ns > written
    assert cli.main(arguments(model, tmp_path, "--documents", "2")) == 0
    assert len(list(tmp_path.glob("stock-*.json"))) == 2


def test_other_weights_in_the_same_folder_are_measured_again(tmp_path):
    folder, output = tmp_path / "model", tmp_path / "output"
    for seed in (0, 1):
        save_tiny(folder, seed=seed)
        assert cli.main(arguments(folder, output)) == 0
    assert len(list(output.glob("stock-*.json"))) == 2


def test_a_yaml_file_says_the_same_as_flags(model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("All happy families are alike. " * 10)
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {model}\nencoding: stock\nlengths: [32, 128]\ndevice: cpu\ntext: {text}\noutput_dir: {tmp_path / 'yaml'}\n")
    assert cli.main([str(config)]) == 0
    assert cli.main(arguments(model, tmp_path / "flags", "--text", str(text))) == 0
    assert files(tmp_path / "yaml") == files(tmp_path / "flags")


def test_a_dataset_file_is_measured_and_short_rows_are_reported(model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"body": body}) for body in ["a long row " * 20, "short", "another long row " * 20]))
    assert cli.main(arguments(model, tmp_path / "out", "--dataset", str(rows), "--text_column", "body")) == 0
    run = json.loads(next((tmp_path / "out").glob("stock-*.json")).read_text())
    assert [each["tokens"] for each in run["documents"]] == [220, 340]
    assert run["skipped"] == [{"name": f"{rows}[1]", "tokens": 5, "reason": "fewer than 128 tokens"}]
    assert run["scores"][-1]["standard_error"] > 0

    counted = ["--dataset", str(rows), "--text_column", "body", "--documents", "1", "--lengths", "330"]
    assert cli.main(arguments(model, tmp_path / "one", *counted)) == 0
    run = json.loads(next((tmp_path / "one").glob("stock-*.json")).read_text())
    assert [each["tokens"] for each in run["documents"]] == [340], "one document long enough, not the first row"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--encoding", "yarm"], "yarn"),
        (["--encoding", "nope", "--factor", "2"], "none of the encodings takes the option 'factor'"),
        (["--option", "window"], "not of the form key=value"),
        (["--text", "missing.txt"], "missing.txt"),
        (["--text", "missing.txt", "--dataset", "some"], "exclude each other"),
        (["--lengths", "1"], "at least 2"),
        (["--protocol", "slide"], "Did you mean 'sliding'"),
        (["--protocol", "prefix", "--stride", "8"], "protocol 'prefix' has no option 'stride'"),
        (["--expect_processes", "2"], "1 process(es) run and 2 were expected"),
        (["--encoding", "learned"], "past the learned table of 64"),
        (["--key_tokens", "true", "--key_short", "60"], "key tokens need short + stride < long, got 60, 15 and 64"),
        (["--output_dir", "/dev/full/x"], "/dev/full"),
        (["--lengths", "10000000"], r"tokens; 1 x 10,000,000 = 10,000,000 are needed"),
        (["--model", "no-such-folder"], "no-such-folder"),
        (["--encoding", "stock", "linear", "--factor", "-1"], "factor"),
    ],
)
def test_a_mistake_is_one_line_and_a_failure(model, tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(arguments(model, tmp_path / "out", *more)) != 0
    stderr = capsys.readouterr().err
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists(), "nothing is measured before the mistake is found"


def test_an_encoding_that_changes_nothing_is_a_failure(model, tmp_path, capsys, monkeypatch):
    from contextlib import nullcontext

    monkeypatch.setattr(hf_posenc.patching, "patched", lambda model, name, **options: nullcontext(model))
    assert cli.main(arguments(model, tmp_path / "out", "--encoding", "linear", "--factor", "2")) != 0
    assert "same live encoding as the stock model" in capsys.readouterr().err


def one(folder, name="stock"):
    """The only result of an encoding in a folder."""
    (file,) = folder.glob(f"{name}-*.json")
    return json.loads(file.read_text())


def slow_documents(model, tmp_path, output):
    """A command that takes about a second for each of six documents."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"{number} rows of text, " * 18}) for number in range(6)))
    more = ["--dataset", str(rows), "--lengths", "64", "256", "--protocol", "decoded", "--encoding", "alibi", "stock"]
    return [sys.executable, str(RECIPE), *arguments(model, output, *more)]


def start(command):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT, preexec_fn=heed_ctrl_c, **pipes)


def wait_for_documents(output, count):
    """Until so many documents are in the journals."""
    for _ in range(1200):
        if sum(len(path.read_text().splitlines()) for path in (output / UNFINISHED).glob("*.jsonl")) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("no document was finished in a minute")


def numbers(result):
    return result["scores"], result["buckets"], result["documents"]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_an_interrupted_one_leaves_valid_results(model, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli.main(slow_documents(model, tmp_path, whole)[2:]) == 0
    process = start(slow_documents(model, tmp_path, broken))
    wait_for_documents(broken, 2)
    process.kill()
    process.wait()
    assert not list(broken.glob("*.json")), "killed: nothing but the journal"
    (journal,) = (broken / UNFINISHED).glob("alibi-*.jsonl")
    journal.write_text(journal.read_text() + '\n{"index": 5, "na')  # a process that dies while writing
    kept = journal.read_text()

    process = start(slow_documents(model, tmp_path, broken))
    wait_for_documents(broken, 4)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, stderr
    partial = one(broken, "alibi")
    assert not partial["complete"] and 2 <= len(partial["documents"]) < 6
    assert "alibi (unfinished)" in stdout and "goes on from what was finished" in stdout and "Traceback" not in stderr
    assert journal.read_text().startswith(kept), "what was finished is not measured again"

    assert cli.main(slow_documents(model, tmp_path, broken)[2:]) == 0
    for name in ("alibi", "stock"):
        assert numbers(one(broken, name)) == numbers(one(whole, name))
    assert not (broken / UNFINISHED).exists()


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"{number} rows of text, " * (number % 3 + 3)}) for number in range(7)))
    more = ["--dataset", str(rows), "--lengths", "16", "64", "--protocol", "sliding", "--stride", "5", "--encoding", "stock", "alibi"]
    assert cli.main(arguments(model, tmp_path / "one", *more)) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(RECIPE), *arguments(model, tmp_path / "two", *more, "--expect_processes", "2")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 process(es)") == 1
    for name in ("stock", "alibi"):
        first, second = one(tmp_path / "one", name), one(tmp_path / "two", name)
        assert numbers(first) == numbers(second) and first["skipped"] == second["skipped"]
        assert (first["processes"], second["processes"]) == (1, 2)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_is_a_flag(protocol, model, tmp_path, capsys):
    takes = create_protocol(protocol).__dict__
    options = [word for name in ("stride", "target") if name in takes for word in (f"--{name}", "8")]
    assert cli.main(arguments(model, tmp_path, "--protocol", protocol, *options, "--documents", "2")) == 0
    result = one(tmp_path)
    assert result["protocol"] == protocol and [score["length"] for score in result["scores"]] == [32, 128]
    assert f"protocol {protocol}" in capsys.readouterr().out
    with open(tmp_path / "perplexity.csv") as file:
        assert {row["protocol"] for row in csv.DictReader(file)} == {protocol}


def test_key_tokens_have_a_column(model, tmp_path, capsys):
    assert cli.main(arguments(model, tmp_path, "--key_tokens", "true", "--key_short", "16", "--encoding", "stock", "nope")) == 0
    assert "key tokens" in capsys.readouterr().out
    assert one(tmp_path)["scores"][-1]["key_tokens"] == one(tmp_path, "nope")["scores"][-1]["key_tokens"] is not None
    assert one(tmp_path)["key_tokens"]["long"] == 64


@pytest.mark.slow
def test_a_disk_that_fills_up_is_an_error_and_leaves_nothing_unreadable(model, tmp_path):
    limit = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    recipe = f"import sys; from hf_posenc.evaluation.perplexity.cli import main; sys.exit(main({arguments(model, tmp_path / 'out')!r}))"
    command = [sys.executable, "-c", f"{limit}; {recipe}"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 1
    assert "error: " in done.stderr and "File too large" in done.stderr
    assert not list((tmp_path / "out").glob("*.json"))
    assert cli.main(arguments(model, tmp_path / "out")) == 0
