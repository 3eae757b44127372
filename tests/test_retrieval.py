"""Tasks put to a model: controls, scores of what it says, effective length, and the recipe."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_posenc.cli import main
from hf_posenc.evaluation import Interrupted, RetrievalResult, retrieval
from hf_posenc.evaluation.retrieval import Prompts
from hf_posenc.evaluation.retrieval.effective import Threshold, interval, means
from hf_posenc.evaluation.tasks import create

pytest.importorskip("wonderwords")
RECIPE = Path(__file__).parents[1] / "recipes" / "retrieval.py"
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ENVIRONMENT["PYTHONPATH"] = os.pathsep.join(filter(None, [str(RECIPE.parents[1]), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The path of a short text."""
    file = tmp_path_factory.mktemp("text") / "book.txt"
    file.write_text(" ".join(f"Sentence {number} tells nothing." for number in range(200)))
    return str(file)


@pytest.mark.parametrize(
    ("scores", "threshold", "length"),
    [
        ({1: [1.0], 2: [0.86], 4: [0.84]}, Threshold(), 2),
        ({1: [0.4], 2: [0.34], 4: [0.33]}, Threshold(), 2),
        ({1: [0.9], 2: [0.5], 4: [0.9]}, Threshold(), 1),
        ({1: [0.0], 2: [0.0]}, Threshold(), 0),
        ({1: [0.856], 2: [0.855]}, Threshold(0.856, absolute=True), 1),
        ({1: [0.8], 2: [0.9]}, Threshold(0.856, absolute=True), 0),
    ],
)
def test_the_effective_length_is_the_last_before_the_score_falls(scores, threshold, length):
    """A length after a fall does not count; nothing found at the shortest is no length at all."""
    assert threshold.length(means([scores])) == length


def test_the_mean_over_tasks_weighs_tasks_and_not_prompts():
    assert means([{1: [1.0] * 9, 2: [1.0]}, {1: [0.0], 2: [0.5]}]) == {1: 0.5, 2: 0.75}


def test_the_interval_is_that_of_the_binomial():
    """20 of 40 right: 95 % of means between 0.345 and 0.655, by the normal approximation."""
    low, high = interval([{1: [0.0, 1.0] * 20}], lambda found: found[1])
    assert low == pytest.approx(0.345, abs=0.03) and high == pytest.approx(0.655, abs=0.03)
    sure = {1: [1.0] * 5, 2: [1.0] * 5, 4: [0.0] * 5}
    assert interval([sure], Threshold().length) == (2, 2)
    assert interval([{1: [1.0] * 4, 2: [1.0, 1.0, 1.0, 0.0]}], Threshold().length) == (1, 2)


def test_controls_are_measured_beside_the_grid(model, tokenizer, book, tmp_path):
    """The oracle is the question at the shortest length, chance has the context of another one; both by the pass that scores the rest."""
    result = retrieval(model, tokenizer, "niah_multivalue", [1500, 1600], trials=2, text=book)
    assert [(cell.context, cell.depth) for cell in result.cells] == [(each, None) for each in ("short", "other", "whole", "whole")]
    short, other, *whole = result.cells
    assert short.length == other.length < 1500 and [cell.length for cell in whole] == result.lengths == [1500, 1600]
    prompts, nats = Prompts(create("niah_multivalue", text=book), tokenizer), 0.0
    for trial in range(2):
        prompt = prompts.prompt(other.length, None, trial, other=True)
        with torch.no_grad():
            logits = model(input_ids=prompt.input_ids[None]).logits[0].log_softmax(-1)
        nats -= logits[prompt.scored - 1, prompt.input_ids[prompt.scored]].sum().item()
    assert other.nats == pytest.approx(nats / 2, rel=1e-4) and other.nats != short.nats
    assert RetrievalResult.load(result.save(tmp_path / "r.json")) == result
    bare = retrieval(model, tokenizer, "niah_multivalue", [1500, 1600], trials=2, controls=False, text=book)
    assert [(cell.context, cell.nats) for cell in bare.cells] == [("whole", cell.nats) for cell in whole]


def scripted(script):
    """A hook that makes the nth decoding step, after the pass over the prompt, say the nth token of a script."""
    said = iter(script)

    def say(layer, args, logits):
        if logits.shape[1] != 1:
            return logits
        return torch.full_like(logits, -100.0).index_fill(-1, torch.tensor([next(said, 1)]), 100.0)

    return say


@pytest.mark.parametrize(("share", "score"), [(4, 1.0), (3, 0.75), (1, 0.25), (0, 0.0)])
def test_what_is_generated_is_scored_as_the_authors_do(model, tokenizer, book, share, score):
    """A real run of `generate` on a model whose output layer is a script, which knows some of the four values, in another order."""
    prompt = Prompts(create("niah_multivalue", text=book), tokenizer).prompt(1200, None, 0)
    said = "well: " + "; ".join([*prompt.keys[:share], *["none"] * (4 - share)][::-1])
    hook = model.get_output_embeddings().register_forward_hook(scripted(tokenizer.encode(said, add_special_tokens=False)))
    try:
        (cell,) = retrieval(model, tokenizer, "niah_multivalue", [1200], trials=1, generate=True, controls=False, text=book).cells
    finally:
        hook.remove()
    assert (cell.generated, cell.scores) == (score, [score])


def test_teacher_forced_the_share_of_the_answers_counts(model, tokenizer, book):
    """Where the output layer always says what comes next but for the digit 0, those answers are exact that have none."""
    prompts = Prompts(create("niah_multiquery", seed=4, text=book), tokenizer)
    prompt, (nought,) = prompts.prompt(1200, None, 0), tokenizer.encode("0", add_special_tokens=False)

    def oracle(layer, args, logits):
        if logits.shape[1] != len(prompt.scored):
            return logits
        targets = prompt.input_ids[prompt.scored]
        return torch.full_like(logits, -100.0).scatter(-1, targets.where(targets != nought, 0)[None, :, None], 100.0)

    hook = model.get_output_embeddings().register_forward_hook(oracle)
    try:
        (cell,) = retrieval(model, tokenizer, "niah_multiquery", [1200], trials=1, controls=False, seed=4, text=book).cells
    finally:
        hook.remove()
    right = ["0" not in key for key in prompt.keys]
    assert 0 < sum(right) < 4 and (cell.scores, cell.exact) == ([sum(right) / 4], 0.0)


def test_an_interrupted_run_goes_on_with_the_controls_that_it_has(model, tokenizer, tmp_path):
    how = {"task": "vt", "lengths": [4000], "trials": 2}
    whole = retrieval(model, tokenizer, **how)
    seen = []

    def see(module, args, kwargs):
        if kwargs["input_ids"].shape[1] > 8:
            if len(seen) == 3:
                raise KeyboardInterrupt
            seen.append(kwargs["input_ids"].shape[1])

    hook = model.model.register_forward_pre_hook(see, with_kwargs=True)
    try:
        with pytest.raises(Interrupted) as stopped:
            retrieval(model, tokenizer, **how, journal=tmp_path)
    finally:
        hook.remove()
    assert [(cell.context, cell.trials) for cell in stopped.value.result.cells] == [("short", 2), ("other", 1)]
    resumed = retrieval(model, tokenizer, **how, journal=tmp_path)
    assert [cell.nats for cell in resumed.cells] == [cell.nats for cell in whole.cells]
    (journal,) = tmp_path.glob("*.jsonl")
    assert len(journal.read_text().split()) and sum(bool(line) for line in journal.read_text().split("\n")) == 6


RUN = [
    "--tasks",
    "niah_single_1",
    "niah_multikey_2",
    "--lengths",
    "800",
    "900",
    "--trials",
    "2",
    "--device",
    "cpu",
    "--encoding",
    "stock",
    "nope",
]


def test_the_recipe_compares_encodings_and_tasks(folder, tmp_path, capsys):
    arguments = ["retrieval", "--model", str(folder), "--output_dir", str(tmp_path), *RUN]
    beside = tmp_path / "unfinished" / "alibi-0123abcd.0.jsonl"  # of a run on another device
    beside.parent.mkdir()
    beside.write_text("{}")
    assert main(arguments) == 0
    assert [*beside.parent.iterdir()] == [beside]
    said = capsys.readouterr().out
    found = {(each["encoding"], each["protocol"]): each for path in tmp_path.glob("*-*-*.json") for each in [json.loads(path.read_text())]}
    assert {*found} == {(name, task) for name in ("stock", "nope") for task in ("niah_single_1", "niah_multikey_2")}
    assert all(f"{name} {task}" in said for name, task in found) and "stock mean" in said and "RULER-style" not in said
    summary = json.loads((tmp_path / "retrieval.json").read_text())
    assert summary["encodings"]["nope"]["niah_multikey_2"]["scores"].keys() == {"800", "900"} and summary["threshold"]["share"] == 0.85
    with open(tmp_path / "retrieval.csv") as file:
        rows = [(row["encoding"], row["task"], row["context"], row["length"]) for row in csv.DictReader(file)]
    assert len(rows) == 4 * 4 and len({*rows}) == 16 and {row[:2] for row in rows} == {*found}
    assert all((tmp_path / f"retrieval-{name}.png").stat().st_size > 1000 for name in ("stock", "nope"))
    assert main([*arguments, "--threshold", "0.856", "--absolute", "--tasks", "niah_multikey_2"]) == 0
    assert capsys.readouterr().out.count("measured before") == 2, "no result depends on the other tasks, nor on the threshold"


def test_depths_have_heat_maps_of_their_own(folder, tmp_path):
    arguments = ["--tasks", "niah_single_1", "vt", "--lengths", "3500", "--trials", "1", "--depths", "3", "--device", "cpu"]
    assert main(["retrieval", "--model", str(folder), "--output_dir", str(tmp_path), *arguments]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"retrieval-stock.png", "retrieval-stock-niah_single_1.png"}
    (needle,) = tmp_path.glob("stock-niah_single_1-*.json")
    whole = [cell["depth"] for cell in json.loads(needle.read_text())["cells"] if cell["context"] == "whole"]
    assert whole == [0.0, 0.5, 1.0]


@pytest.mark.slow
def test_processes_of_the_recipe_share_the_prompts(folder, tmp_path):
    """Two ranks of a real torchrun: the numbers of one process."""
    arguments = ["--model", str(folder), *RUN, "--encoding", "stock", "--output_dir"]
    assert main(["retrieval", *arguments, str(tmp_path / "alone")]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(RECIPE)]
    shared = tmp_path / "shared"
    done = subprocess.run([*launcher, *arguments, str(shared)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for file in (tmp_path / "alone").glob("stock-*.json"):
        one, two = (json.loads((folder / file.name).read_text()) for folder in (file.parent, shared))
        assert (one["processes"], two["processes"]) == (1, 2)
        assert [cell["nats"] for cell in two["cells"]] == pytest.approx([cell["nats"] for cell in one["cells"]], rel=1e-4)


@pytest.mark.slow
def test_the_recipe_goes_on_after_it_was_killed(folder, tmp_path):
    """What the journal has is not measured again: the result takes over what was changed there. The other numbers are those of one run."""
    words = ["--model", str(folder), "--tasks", "niah_single_1", "json_kv", "--lengths", "900", "--trials", "4", "--device", "cpu"]
    words += ["--output_dir"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, str(RECIPE), *words, str(killed)], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while sum(path.read_bytes().count(b"\n") for path in killed.glob("unfinished/*.jsonl")) < 3:
        assert time.monotonic() < end and process.poll() is None, "it did not come that far"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not [*killed.glob("*.json")]
    (journal,) = killed.glob("unfinished/*.jsonl")
    first, *rest = journal.read_text().split("\n")
    journal.write_text("\n".join([json.dumps({**json.loads(first), "seconds": 1e6}), *rest, '{"length": 900, "de']))
    assert main(["retrieval", *words, str(killed)]) == main(["retrieval", *words, str(whole)]) == 0
    assert not (killed / "unfinished").exists()
    for file in whole.glob("stock-*.json"):
        one, again = (json.loads((each / file.name).read_text()) for each in (whole, killed))
        assert again["complete"] and (again["seconds"] > 1e6) == (again["protocol"] == "niah_single_1")
        for cell, other in zip(one["cells"], again["cells"], strict=True):
            assert all(cell[name] == other[name] for name in ("length", "context", "trials", "scores", "exact", "generated"))
            assert cell["nats"] == pytest.approx(other["nats"], rel=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "niah_single"], "niah_single_1"),
        (["--lengths", "300"], "300 tokens is too short: the words around the filler need"),
        (["--threshold", "85"], "--threshold"),
        (["--text", "gone.txt", "--tasks", "niah_single_2"], "gone.txt"),
        (["--chat"], "no chat template"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_measured(folder, tmp_path, capsys, more, message):
    assert main(["retrieval", "--model", str(folder), "--output_dir", str(tmp_path / "out"), *RUN, *more]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line and not (tmp_path / "out").exists()


def test_the_tasks_are_printed_with_where_they_come_from(capsys):
    assert main(["retrieval", "--tasks", "list"]) == 0
    said = dict(line.split() for line in capsys.readouterr().out.splitlines() if len(line.split()) == 2)
    assert said["niah_single_1"] == "RULER" and said["niah_single_2"] == "RULER-style" and said["passkey"] == "passkey"
