"""The report of a fine-tuning run: its numbers against logits, and what a run that goes on keeps."""

import base64
import json
import math
import re
import shutil
import sys
from itertools import pairwise

import pytest
import torch
from test_recipe_finetune import arguments, equal, fit, weights
from tiny import save_tiny
from transformers import AutoModelForCausalLM

import hf_posenc
from hf_posenc import finetuning
from hf_posenc.finetuning.run import prepare, train, write_report

YARN = ["--encoding", "yarn", "--factor", "4", "--eval_lengths", "32", "90"]
NO_SAVES = ["--save_strategy", "no"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("A sentence to learn, over and over, with a number: 12345. " * 60)
    return path


def numbers(folder):
    return json.loads((folder / "report.json").read_text())


def reported(argv):
    """A run up to its report: its evaluation, numbers and page."""
    prepared = prepare(finetuning.parse(argv))
    train(*prepared)
    write_report(*prepared[:2])
    folder = prepared[0].output
    return prepared[2], numbers(folder), (folder / "report.html").read_text()


def table(page, name):
    """The cells of a table, row by row."""
    body = re.search(rf'<table class="{name}">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
    return [re.findall(r"<td>(.*?)</td>", row) for row in body.split("<tr>")[1:]]


@torch.no_grad()
def nats_of(model, windows):
    """Nats [N, L - 1] of windows [N, L], by the probabilities."""
    p = model.eval()(windows).logits.double().softmax(-1)
    return -p[:, :-1].gather(2, windows[:, 1:, None])[..., 0].log()


def test_the_numbers_are_those_of_the_logits(base, text, tmp_path):
    evaluation, found, page = reported(
        arguments(base, text, tmp_path, *YARN, *NO_SAVES, "--eval_tasks", "passkey", "--eval_tasks_lengths", "400")
    )
    load = AutoModelForCausalLM.from_pretrained
    models = {"as loaded": load(base), "before": hf_posenc.patch(load(base), "yarn", factor=4.0), "after": load(tmp_path)}
    ids = evaluation.ids
    short = ids[: 4 * 32].view(4, 32)
    long = ids[: len(ids) // 90 * 90].view(-1, 90)
    edges = [1, 16, 32, 48, 64, 80, 90]
    assert long.shape[0] > 1 and found["length"] == 90 and found["short_length"] == 32
    for when, each in models.items():
        assert found[when]["short"] == pytest.approx(nats_of(each, short).mean().item(), rel=1e-5)
        if when != "as loaded":
            nats = nats_of(each, long).mean(0)
            ranges = [[a, b, pytest.approx(nats[a - 1 : b - 1].mean().item(), rel=1e-5)] for a, b in pairwise(edges)]
            assert found[when]["by_position"] == ranges
    before, after = (found[when]["by_position"] for when in ("before", "after"))
    assert table(page, "positions") == [
        [f"{a} ... {b - 1}", f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}"] for (a, b, old), (*_, new) in zip(before, after, strict=True)
    ]
    assert [row[0] for row in table(page, "short")] == ["as loaded", "before", "after"]
    perplexities = [nats_of(models[when], long).mean().exp().item() for when in ("before", "after")]
    assert [row[0] for row in table(page, "evaluation")] == ["32", "90"]
    assert [float(cell) for cell in table(page, "evaluation")[1][1:3]] == pytest.approx(perplexities, rel=1e-2)
    assert [row[0] for row in table(page, "tasks")] == ["passkey_400"] and "patched: yarn, factor=4.0 on all layers" in page
    flags = dict(table(page, "settings"))
    assert flags["max_steps"] == "6" and flags["factor"] == "4.0" and "lora_rank" not in flags and "hub_token" not in flags
    assert "not measured before" not in page and page.count("data:image/svg") == 2


def test_a_run_that_goes_on_keeps_what_was_before_it(base, text, tmp_path):
    argv = arguments(base, text, tmp_path, *YARN)
    fit(argv)
    first = numbers(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-6")
    (tmp_path / "report.json").write_text(json.dumps({**first, "after": None, "as loaded": {"short": 7.0}}))
    _, again, page = reported(argv)
    assert again == {**first, "as loaded": {"short": 7.0}} and table(page, "short")[0][1] == "7.0000"
    assert [row[1] for row in table(page, "positions")] == [f"{nats:.4f}" for *_, nats in first["before"]["by_position"]]
    for folder in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(folder)
    (tmp_path / "report.json").write_text("{")  # of a run that began before this one
    fit(argv)
    assert numbers(tmp_path) == first


def test_a_finished_run_is_measured_again_in_its_precision(base, text, tmp_path):
    argv = arguments(base, text, tmp_path, *YARN, "--bf16", "true", "--loss_chunk", "0")
    (evaluation, first, _), (again, second, _) = reported(argv), reported(argv)
    assert evaluation.last == again.last and first == second


def test_what_was_not_measured_before_is_said(base, text, tmp_path):
    _, found, page = reported(arguments(base, text, tmp_path, *YARN, *NO_SAVES, "--eval_on_start", "false"))
    assert {"before", "as loaded"}.isdisjoint(found) and "The loss by position was not measured before the first step" in page
    assert [row[1] for row in table(page, "positions")] == ["-"] * 6 and [row[0] for row in table(page, "short")] == ["after"]


def test_a_report_that_is_asked_for_later_has_what_the_log_has(base, text, tmp_path):
    argv = arguments(base, text, tmp_path, *YARN)
    trainer = fit([*argv, "--report", "false"])
    shutil.rmtree(tmp_path / "checkpoint-6")
    *_, page = reported(argv)
    first = next(entry for entry in trainer.state.log_history if "eval_nll@90" in entry)
    assert table(page, "evaluation")[1][1] == f"{math.exp(first['eval_nll@90']):.2f}"
    assert "The loss by position was not measured before" in page


def test_the_report_changes_nothing_and_can_be_left_out(text, tmp_path, tmp_path_factory):
    gpt2 = save_tiny(tmp_path_factory.mktemp("gpt2"), "gpt2")  # it has dropout: random numbers matter
    for answer in ("true", "false"):
        fit(arguments(gpt2, text, tmp_path / answer, "--encoding", "kerple", "--report", answer, *NO_SAVES, "--max_steps", "3"))
    assert equal(weights(tmp_path / "true"), weights(tmp_path / "false"))
    assert (tmp_path / "true" / "report.json").exists() and not (tmp_path / "false" / "report.json").exists()


def test_where_nothing_makes_pages_the_run_has_no_report(base, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    prepared = prepare(finetuning.parse(arguments(base, text, tmp_path, *YARN)))
    write_report(*prepared[:2])
    assert "no report: jinja2 is not installed: pip install 'hf_posenc[report]'" in capsys.readouterr().out
    assert not list(tmp_path.glob("report.*"))


def test_the_best_checkpoint_is_what_the_report_has_after_training(base, text, tmp_path):
    more = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1", "--load_best_model_at_end", "true", "--max_steps", "4"]
    more += ["--metric_for_best_model", "nll@90", "--learning_rate", "0.3", "--lr_scheduler_type", "constant"]
    evaluation, found, page = reported(arguments(base, text, tmp_path, *YARN, *more))
    best = json.loads((tmp_path / "trainer_state.json").read_text())["best_global_step"]
    assert f"After: the best checkpoint, of step {best}." in page
    total = sum((stop - start) * nats for start, stop, nats in found["after"]["by_position"])
    assert total / 89 == pytest.approx(evaluation.last["eval_nll@90"], rel=1e-6)


def test_a_loss_with_weights_and_settings_that_are_dictionaries_are_told(base, text, tmp_path):
    more = ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr_rate": 0.1}', "--logging_steps", "2"]
    *_, page = reported(arguments(base, text, tmp_path, *YARN, *NO_SAVES, *more, "--loss", "longce:short=8,stride=4"))
    flags = dict(table(page, "settings"))
    assert "min_lr_rate" in flags["lr_scheduler_kwargs"] and "accelerator_config" not in flags
    picture = base64.b64decode(re.search(r'id="loss".*?base64,([^"]+)', page)[1]).decode()
    named = " ".join(re.findall(r"<!-- (.*?) -->", picture))  # a long name has several lines
    assert "training, longce (gamma=5, short=8, stride=4)" in named
