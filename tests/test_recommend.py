"""What `recommend` says follows from what can be measured in another way."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_posenc
from hf_posenc import finetuning
from hf_posenc.cli import main
from hf_posenc.evaluation import Evaluator
from hf_posenc.evaluation.budget import Budget, BudgetArguments, begun
from hf_posenc.evaluation.corpus import Document, embedded_corpus
from hf_posenc.evaluation.kept import FOLDER, Kept
from hf_posenc.evaluation.models import load_model
from hf_posenc.evaluation.processes import Processes
from hf_posenc.evaluation.result import Interrupted
from hf_posenc.patching import patch_of
from hf_posenc.recommending.candidates import TRIED, variants
from hf_posenc.recommending.recommendation import Recommendation, Row, best
from hf_posenc.recommending.verb import Search, documents_of

LENGTH = 256
TEXT = Document("text", torch.arange(1024))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a model whose rotations matter, and its tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("small"))


@pytest.fixture
def loaded(small):
    return AutoModelForCausalLM.from_pretrained(small).eval(), AutoTokenizer.from_pretrained(small)


def nats_of(model, tokenizer, length, last):
    """The mean nats of the last predictions of a text that ends where one of `LENGTH` tokens does."""
    ids = tokenizer(embedded_corpus()[: 4 * LENGTH], return_tensors="pt").input_ids[:, LENGTH - length : LENGTH]
    logits = model(ids, use_cache=False).logits.log_softmax(-1)[0, :-1]
    return -logits.gather(-1, ids[0, 1:, None])[-last:].mean().item()


@torch.no_grad()
def test_the_best_is_the_best(loaded, tmp_path):
    model, tokenizer = loaded
    native = hf_posenc.inspect(model).context_length
    assert native < LENGTH
    before = model(torch.arange(9)[None]).logits
    found = hf_posenc.recommend(model, tokenizer, LENGTH, budget=5, kept=tmp_path)
    assert torch.equal(model(torch.arange(9)[None]).logits, before)
    assert found.reference == pytest.approx(nats_of(model, tokenizer, native, native // 2), rel=1e-4)
    finalists = {label: row for label, row in found.rows.items() if LENGTH in row.nats}
    assert not found.not_tried and {*TRIED, "stock"} <= {*found.rows, *found.refused} and len(finalists) >= 4
    for label, row in finalists.items():
        with hf_posenc.patched(model, label.partition(":")[0], **row.options) if label != "stock" else torch.no_grad():
            assert row.nats[LENGTH] == pytest.approx(nats_of(model, tokenizer, LENGTH, native // 2), rel=1e-4)
    asked = {label: row for label, row in finalists.items() if row.asked}
    assert len(asked) == 2 and found.chosen in asked
    beaten = [row.nats[LENGTH] for label, row in finalists.items() if label not in asked]
    assert max(row.nats[LENGTH] for row in asked.values()) <= min(beaten)
    exec(found.line, {"hf_posenc": hf_posenc, "model": model})
    assert nats_of(model, tokenizer, LENGTH, native // 2) == pytest.approx(found.rows[found.chosen].nats[LENGTH], rel=1e-4)


def test_what_was_measured_is_taken_and_ctrl_c_leaves_it(loaded, tmp_path):
    said = []

    def say(line):
        said.append(line)
        if len(said) == 5:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        hf_posenc.recommend(*loaded, LENGTH, budget=5, kept=tmp_path, say=say)
    assert len(stopped.value.result.rows) == 2 and len([*tmp_path.rglob("*.json")]) == 6, "four measurements, and two decisions"
    first = hf_posenc.recommend(*loaded, LENGTH, budget=5, kept=tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    again = hf_posenc.recommend(*loaded, LENGTH, budget=5, kept=tmp_path)
    assert again.rows == first.rows and {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == times
    with torch.no_grad():
        next(loaded[0].parameters()).add_(0.1)
    hf_posenc.recommend(*loaded, LENGTH, budget=5, kept=tmp_path)
    assert len([*tmp_path.rglob("*.json")]) > len(times), "another model is measured anew"


@torch.no_grad()
def test_key_tokens_are_those_that_the_stock_model_needs_its_context_for(loaded):
    model, tokenizer = loaded
    search = Search(model, tokenizer, LENGTH, 64, documents_of(tokenizer, None, LENGTH), Budget(5.0), Kept.of(None))
    search.rows = {label: Row({}) for label in ("stock", "alibi")}
    search.find_keys()
    assert search.evaluator is None, "how long it takes is not known"
    search.paces["stock"] = 64, 31.0
    search.find_keys()
    assert search.evaluator is None, "more than a tenth of the time"
    search.paces["stock"] = 64, 1e-3
    search.find_keys()
    rule = search.evaluator.rule
    assert (rule.long, rule.short, rule.stride, rule.last, rule.alpha, rule.beta) == (64, 16, 8, 64, 2.0, -2.0)
    search.evaluator = Evaluator.stock(model, replace(rule, alpha=0.01, beta=-9.0))
    search.read("alibi", LENGTH)
    ids = search.documents[0].input_ids

    def nats(start, at):
        return -model(ids[None, start:at]).logits[0, -1].log_softmax(-1)[ids[at]].item()

    keys = []
    for at in range(LENGTH - 64 + 16, LENGTH):
        long, short = nats(LENGTH - 64, at), nats(LENGTH - 64 + (at - LENGTH + 64 - 16) // 8 * 8, at)
        if short - long > 0.01 and long < 9:
            keys.append(at)
    row = search.rows["alibi"]
    assert row.key_tokens == len(keys) > 3
    with hf_posenc.patched(model, "alibi"):
        assert row.key_nats == pytest.approx(sum(nats(0, at) for at in keys) / len(keys), rel=1e-4)
    assert f"LongPPL is {math.exp(row.key_nats):.2f}" in str(search.result())


def test_without_time_nothing_is_begun_and_all_is_named(loaded, tmp_path):
    found = hf_posenc.recommend(*loaded, LENGTH, budget=1e-9, kept=tmp_path, say=pytest.fail)
    assert not [*tmp_path.iterdir()], "nothing that a call with more time would go by"
    assert not found.rows and found.chosen is None and {"stock", "yarn", "rerope"} <= {*found.not_tried}
    assert "give it more time" in str(found)


def test_what_fits_into_the_time_that_is_left(loaded):
    """Twice the tokens take four times as long; what was not measured is taken to be slower."""
    search = Search(*loaded, 1024, 64, [TEXT], Budget(1.0), Kept.of(None))
    search.paces = {"stock": (128, 1.0), "yarn": (256, 8.0)}
    for label, length, texts, fits in (("yarn", 256, 7, True), ("yarn", 256, 8, False), ("yarn", 512, 1, True), ("yarn", 1024, 1, False)):
        assert search.time_for(label, length, texts) == fits, (label, length, texts)
    assert search.time_for("rerope", 128, 44) and not search.time_for("rerope", 128, 46)
    assert 128 * 1.7 < search.longest(6) < 128 * 1.8  # 0.4 minutes for six of them: 4 s each, or 3.1 s of the stock model
    search.documents = [TEXT] * 3
    assert 0.97 < search.longest(6) / 128 < 1.0, "three texts take three times as long"


def test_what_takes_far_too_long_is_stopped_and_named(loaded, monkeypatch):
    model, tokenizer = loaded
    search = Search(model, tokenizer, LENGTH, 64, documents_of(tokenizer, None, LENGTH), Budget(5.0), Kept.of(None))
    search.rows = {label: Row({}) for label in ("stock", "alibi", "rerope")}
    monkeypatch.setattr("hf_posenc.recommending.verb.LEAST", 0.0)
    search.read("stock", 64)  # nothing to compare with: it has all the time
    search.paces["stock"] = 64, 1e-6
    search.read("alibi", LENGTH)
    found = search.result()
    assert "1 x 256 tokens" in found.stopped["alibi"] and found.not_tried == ["rerope"] and "alibi, more than" in str(found)
    assert not search.rows["alibi"].nats and not patch_of(model).placements
    assert not any(module._forward_pre_hooks for module in model.modules())
    search.find("alibi")
    assert not search.rows["alibi"].asked, "it is not begun again"


def test_the_best_is_left_the_time_for_its_needles(loaded, monkeypatch):
    """So many needles take all of it: one finalist is read, the others are not begun."""
    model, tokenizer = loaded
    search = Search(model, tokenizer, LENGTH, 64, documents_of(tokenizer, None, LENGTH), Budget(5.0), Kept.of(None))
    search.rows = {label: Row({}) for label in ("stock", "alibi", "rerope", "nope")}
    search.read("stock", 64)
    monkeypatch.setattr("hf_posenc.recommending.verb.DEPTHS", range(10**6))
    search.read_finalists(["alibi", "rerope", "nope"])
    assert [label for label, row in search.rows.items() if LENGTH in row.nats] == ["alibi"]
    search.finish(["alibi"], 1)
    assert "no time to ask for needles" in str(search.result()) and "fine-tuning" not in str(search.result())


def test_an_encoding_whose_loss_is_no_number_is_stopped_and_the_others_go_on(loaded):
    model, tokenizer = loaded
    search = Search(model, tokenizer, LENGTH, 64, documents_of(tokenizer, None, LENGTH), Budget(5.0), Kept.of(None))
    search.rows = {label: Row({}) for label in ("stock", "alibi", "nope")}
    broken = model.lm_head.register_forward_hook(lambda layer, given, logits: logits * math.nan)
    with pytest.raises(FloatingPointError):
        search.read("stock", 64)
    search.paces["stock"] = 64, 1.0
    search.read("alibi", LENGTH)
    broken.remove()
    search.read("nope", LENGTH)
    assert "is nan" in search.stopped["alibi"] and search.result().chosen == "nope" and "stopped: alibi" in str(search.result())


def test_a_call_that_goes_on_reads_the_lengths_of_the_one_that_was_stopped(loaded, tmp_path):
    """Whatever time either has taken so far; another budget has another first round, and so have other texts."""

    def search(budget, passed, texts=1):
        found = Search(*loaded, 1024, 64, [TEXT] * texts, Budget(budget), Kept.of(tmp_path, weights="x"))
        found.budget.started -= passed
        found.paces = {"stock": (128, 1.0)}
        return found

    first = search(1.0, 0.0).first(6)
    assert first == search(1.0, 20.0).first(6)
    assert search(1.0, 20.0).longest(6) < first < search(2.0, 0.0).first(6) and search(1.0, 0.0, 2).first(6) < first


def test_what_is_asked_for_is_tried_first(loaded, monkeypatch):
    """Factors that were found, and an encoding with other options than it would be tried with."""
    monkeypatch.setattr("hf_posenc.recommending.candidates.TRIED", ("yarn", "rerope"))
    factors = [1.0, 1.5, 3.0, 4.0]
    table = {"target_length": LENGTH, "short_factor": factors, "long_factor": factors}
    found = hf_posenc.recommend(*loaded, LENGTH, budget=5, encodings={"longrope": table, "rerope": {"window": 8}})
    assert [*found.rows][:4] == ["stock", "longrope", "rerope", "yarn"]
    assert found.rows["longrope"].options == table and found.rows["rerope"].options == {"window": 8}
    with pytest.raises(ValueError, match="long_factor needs one number a rotated pair"):
        hf_posenc.recommend(*loaded, LENGTH, encodings={"longrope": {"factor": 4.0, "long_factor": [2.0]}}, say=pytest.fail)
    assert not patch_of(loaded[0]).placements


def test_what_is_asked_for_has_the_options_that_it_was_asked_for_with():
    good = {"rerope": {"window": 8}, "yarn": {"target_length": 256}}
    far = ("yarn:target_length=320", {"target_length": 320})
    assert [*variants(good, 256, 64, {})] == [("rerope:window=32", {"window": 32}), far]
    assert [*variants(good, 256, 64, {"rerope": {"window": 8}})] == [far]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 16}, "beyond the native context"),
        ({"budget": 0}, "minutes above 0"),
        ({"budget": math.inf}, "finite number of minutes"),
        ({"texts": ["too short"]}, "tokens"),
    ],
)
def test_mistakes_are_found_first(loaded, change, message):
    asked = {"length": LENGTH, **change}
    with pytest.raises(ValueError, match=message):
        hf_posenc.recommend(*loaded, asked.pop("length"), say=pytest.fail, **asked)


def test_a_patched_model_is_refused(loaded):
    hf_posenc.patch(loaded[0], "alibi")
    with pytest.raises(ValueError, match="unpatch"):
        hf_posenc.recommend(*loaded, LENGTH)


def test_needles_come_before_nats_and_short_texts_count():
    """Rows as they are compared."""
    rows = {
        "stock": Row({}, {64: 1.0}, short=1.0),
        "near": Row({}, {128: 0.5}),
        "deaf": Row({}, {256: 2.0}, short=1.0, found=0, asked=3),
        "good": Row({}, {256: 2.2}, short=1.0, found=3, asked=3),
        "dear": Row({}, {256: 2.1}, short=1.2, found=3, asked=3),
    }
    assert best(rows, 5) == ["good", "dear", "deaf", "near", "stock"]
    found = Recommendation("m", 64, 256, 1.0, 1.0, rows, "good")
    assert not found.holds and "2.2 x" not in str(found) and "3 of 3 needles" in str(found)
    assert finetuning.parse([*found.training.split()[2:], "--output_dir", "runs/x"])[1].target_length == 256
    rows["good"].nats[256] = 1.0 + math.log(1.02)
    assert found.holds and found.training not in str(found)


def test_the_command(small, tmp_path, capsys):
    words = ["recommend", str(small), "--length", str(LENGTH), "--budget", "5", "--output_dir", str(tmp_path)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert ("hf_posenc.patch(model, " in shown or "nothing to patch" in shown) and "peak GB" in shown
    told = json.loads((tmp_path / "recommend.json").read_text())
    assert Recommendation.load(tmp_path / "recommend.json").to_dict()["chosen"] == told["chosen"]
    assert (tmp_path / "recommend.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encoding", "yarn:foo=2"], "no option 'foo'"),
        (["--encoding", "longrope:gone.json"], "gone.json"),
        (["--expect_processes", "2"], "2 were expected"),
    ],
)
def test_a_command_that_is_wrong_loads_no_model(small, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.setattr("hf_posenc.evaluation.budget.load_model", pytest.fail)
    assert main(["recommend", str(small), "--output_dir", str(tmp_path), *words]) == 1
    assert message in capsys.readouterr().err


def test_the_time_to_load_is_of_the_budget_and_several_processes_have_no_clock_in_common(small, tmp_path, monkeypatch):
    def slowly(path, arguments):
        time.sleep(0.05)
        return load_model(path, arguments)

    monkeypatch.setattr("hf_posenc.evaluation.budget.load_model", slowly)
    arguments = BudgetArguments(str(small), device="cpu", budget=3.0)
    budget = begun(arguments, tmp_path)["budget"]
    assert budget.minutes == 3.0 and budget.passed > 0.05
    monkeypatch.setattr(Processes, "count", 2)
    with pytest.raises(ValueError, match="one process"):
        begun(arguments, tmp_path)


def test_what_was_measured_is_found_again_whatever_the_options_were(tmp_path):
    kept = Kept.of(tmp_path)
    for long_factor in ((1.0, 2.0), [1.0, 2.0]):
        assert kept.get({"options": {"long_factor": long_factor}}, lambda: {"nats": 1.0}) == {"nats": 1.0}
        kept.get({"options": {"long_factor": long_factor}}, pytest.fail)
    assert len([*(tmp_path / FOLDER).iterdir()]) == 1


def test_a_command_without_time_says_so(small, tmp_path, capsys):
    words = ["recommend", str(small), "--length", str(LENGTH), "--budget", "1e-9", "--output_dir", str(tmp_path)]
    assert main(words) == 0
    assert "give it more time" in capsys.readouterr().out and (tmp_path / "recommend.json").exists()


@pytest.mark.slow
def test_a_command_that_was_killed_goes_on(small, tmp_path):
    """What is on disk is not measured again, and what is recommended is what a run in one piece recommends."""
    words = ["recommend", str(small), "--length", str(LENGTH), "--budget", "5", "--device", "cpu", "--output_dir"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(hf_posenc.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-m", "hf_posenc.cli", *words, str(killed)], env=environment, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(found := [*killed.rglob("*.json")]) < 6:
        assert time.monotonic() < end and process.poll() is None, "it did not come that far"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (killed / "recommend.json").exists()
    times = {path: path.stat().st_mtime_ns for path in found}
    assert main([*words, str(killed)]) == main([*words, str(whole)]) == 0
    assert {path: path.stat().st_mtime_ns for path in found} == times
    assert {path.name for path in (killed / FOLDER).iterdir()} == {path.name for path in (whole / FOLDER).iterdir()}
    went_on, one = (Recommendation.load(each / "recommend.json") for each in (killed, whole))
    assert (went_on.line, went_on.refused, {*went_on.rows}) == (one.line, one.refused, {*one.rows})
    for label, row in one.rows.items():
        again = went_on.rows[label]
        assert (again.options, again.found, again.asked) == (row.options, row.found, row.asked)
        assert again.nats == pytest.approx(row.nats, rel=1e-5) and again.short == (row.short and pytest.approx(row.short, rel=1e-5))
