"""What the recipes show: tables that lose nothing, one bar for all of a run."""

import io
import sys
from dataclasses import fields, replace
from types import SimpleNamespace

import datasets
import pytest
import rich.progress
from test_evaluation import ids, naive_nll, tiny
from tiny import save_tiny
from transformers import logging

import hf_posenc
from hf_posenc import cli, finetuning
from hf_posenc.comparison.report import print_table as print_study
from hf_posenc.comparison.summary import Spread, Summary
from hf_posenc.evaluation import RetrievalResult, perplexity
from hf_posenc.evaluation.perplexity import cli as perplexity_cli
from hf_posenc.evaluation.perplexity.report import print_table
from hf_posenc.evaluation.retrieval import Cell, passkey_cli
from hf_posenc.evaluation.retrieval.passkey_report import print_table as print_grid
from hf_posenc.evaluation.retrieval.report import label

LENGTHS = [1024, 2048, 4096, 8192, 16384, 32768]


@pytest.fixture(scope="module")
def measured():
    return perplexity(tiny(), [ids(20), ids(64, seed=2), ids(40, seed=3)], lengths=[16, 32], min_tokens=2)


def test_a_score_has_the_sums_of_each_document(measured):
    for score in measured.scores:
        texts = [naive_nll(tiny(), ids(n, seed)[: score.length]) for n, seed in ((20, 1), (64, 2), (40, 3))]
        assert score.document_tokens == [len(text) for text in texts]
        assert score.document_nats == pytest.approx([text.sum().item() for text in texts], rel=1e-5)


def test_the_table_pools_the_documents_that_a_result_names(measured, tmp_path, capsys):
    """One document of 4 predictions left of the longest length: exp(10 / 4)."""
    first, last = measured.scores
    scores = [first, replace(last, document_nats=[10.0], document_tokens=[4])]
    print_table({"stock": replace(measured, scores=scores)}, tmp_path)
    assert "12.18" in capsys.readouterr().out


@pytest.fixture
def narrow(monkeypatch, capsys):
    """What was printed on a screen of 60 columns: no line is wider, and nothing cut short."""

    def printed():
        lines = capsys.readouterr().out.splitlines()
        assert "…" not in "".join(lines)
        return [line.rstrip() for line in lines]

    monkeypatch.setenv("COLUMNS", "60")
    return printed


def whole(lines, cells):
    """All of the cells stand in the lines, each in one piece, and the lines keep within the screen."""
    assert max(map(len, lines)) <= 60
    assert not set(cells) - {word for line in lines for word in line.split()}


def test_perplexities_at_many_lengths_fit_a_narrow_screen(measured, tmp_path, narrow):
    scores = [replace(measured.scores[0], length=length, document_nats=[2.0], document_tokens=[3]) for length in LENGTHS]
    names = ("stock", "dynamic_ntk", "yarn factor=2.0 original_length=8192")
    print_table({name: replace(measured, scores=scores) for name in names}, tmp_path)
    lines = narrow()
    lines = lines[: next(index for index, line in enumerate(lines) if "document(s)" in line)]
    whole(lines, ["stock", "dynamic_ntk", "original_length=8192", "last-256", "tokens/s", *(f"{n:,}" for n in LENGTHS)])
    assert sum(line.split().count("1.948") for line in lines) == 3 * len(LENGTHS), "exp(2 / 3)"
    assert sum(line.startswith("encoding") for line in lines) > 1, "every table has the names"


def test_found_numbers_fit_a_narrow_screen(narrow):
    cells = [Cell(length, depth, "whole", 7, [0.0] * 7, 0.0, 0.5, 1.0, None, 1.0) for length in LENGTHS for depth in (0.0, 0.5)]
    known = {field.name: None for field in fields(RetrievalResult)}
    known |= {"model": "m", "dtype": "float32", "attention": "sdpa", "complete": True, "tokens_per_second": 1234.5, "cells": cells}
    known |= {"task": {"digits": 5, "needles": 1, "ask": "one", "distractors": 0}, "options": {"factor": 2.0, "truncate": False}}
    results = {name: RetrievalResult(**{**known, "encoding": name}) for name in ("stock", "dynamic_ntk")}
    print_grid(results)
    lines = narrow()[:-1]
    whole(lines, ["stock", "dynamic_ntk", "factor=2.0", "truncate=False", "tokens/s", "1,234", *(f"{n:,}" for n in LENGTHS)])
    assert sum(line.split().count("0/14") for line in lines) == 2 * len(LENGTHS)


def test_a_row_names_the_file_and_not_the_factors_that_are_in_it():
    known = {field.name: None for field in fields(RetrievalResult)} | {"encoding": "longrope", "complete": True}
    options = {"factor": 2.0, "long_factor": [1.0] * 32, "attention_factor": 1.1}
    result = RetrievalResult(**{**known, "options": options})
    assert label("longrope:found.json,attention_factor=1.1", result) == "longrope:found.json,attention_factor=1.1 factor=2.0"


def test_a_study_fits_a_narrow_screen(narrow):
    values = {length: Spread(10.0 + length, 0.125, 3) for length in LENGTHS}
    labels = ("rope", "yarn:factor=2.0,truncate=false")
    summaries = [Summary(label, values, {}, {}, 12.0, 1234567, ["a"] * 3) for label in labels]
    print_study(SimpleNamespace(arguments=SimpleNamespace(lengths=LENGTHS, seeds=[0, 1, 2], unit="byte")), summaries)
    lines = narrow()
    whole(lines, [*labels, "1,234,567", "parameters", *(f"{n:,}" for n in LENGTHS)])
    assert sum(f"{10.0 + LENGTHS[0]:.1e} ± 0.12" in line for line in lines) == 2


def test_the_list_of_encodings_fits_a_narrow_screen(narrow):
    assert cli.main(["list"]) == 0
    texts = [hf_posenc.describe(name).documentation.split("\n")[0] for name in hf_posenc.list_encodings()]
    whole(narrow(), [*hf_posenc.list_encodings(), *(word for text in texts for word in text.split() if len(word) <= 20)])


class Terminal(io.StringIO):
    """A screen that stderr is shown on."""

    def isatty(self):
        return True


RECIPES = {
    "perplexity": (perplexity_cli.main, ["--lengths", "32", "128", "--documents", "2"]),
    "passkey": (passkey_cli.main, ["--lengths", "500", "--depths", "0.5", "--trials", "2"]),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_bar_covers_all_encodings_and_no_other_is_in_it(recipe, model, tmp_path, monkeypatch):
    logging.enable_progress_bar()
    totals, done, screen = [], [], Terminal()
    add, advance = rich.progress.Progress.add_task, rich.progress.Progress.advance
    monkeypatch.setattr(rich.progress.Progress, "add_task", lambda self, *a, **k: totals.append(k["total"]) or add(self, *a, **k))
    monkeypatch.setattr(rich.progress.Progress, "advance", lambda self, task, n: done.append(n) or advance(self, task, n))
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    main, flags = RECIPES[recipe]
    flags = ["--model", str(model), *flags, "--device", "cpu", "--encoding", "stock", "alibi", "nope", "--output_dir", str(tmp_path)]
    assert main(flags) == 0
    assert len(totals) == 1 and sum(done) == pytest.approx(totals[0]) and totals[0] % 3 == 0
    shown = screen.getvalue()
    assert "nope" in shown and "100%" in shown and shown.count("\x1b[?25l") == 1, "one bar"
    assert "Loading weights" not in shown and "it/s" not in shown
    assert logging.is_progress_bar_enabled() and not datasets.are_progress_bars_disabled(), "those of other programs are as they were"


@pytest.mark.slow
def test_fine_tuning_has_no_bars_in_a_pipe(model, tmp_path, monkeypatch):
    settings = ["--model", str(model), "--encoding", "alibi", "--block_size", "32", "--max_steps", "2", "--eval_tokens", "64"]
    settings += ["--per_device_train_batch_size", "1", "--use_cpu", "true", "--save_strategy", "no"]
    for kind, bars in ((io.StringIO, False), (Terminal, True)):
        pipe = kind()
        monkeypatch.setattr(sys, "stderr", pipe)
        assert finetuning.main([*settings, "--output_dir", str(tmp_path / kind.__name__)]) == 0
        assert ("examples/s" in pipe.getvalue(), "it/s" in pipe.getvalue() or "s/it" in pipe.getvalue()) == (bars, bars)
        assert not datasets.are_progress_bars_disabled()


def test_rows_of_a_dataset_have_no_bar_of_their_own(model, tmp_path, monkeypatch):
    rows = tmp_path / "rows.csv"
    rows.write_text("text\n" + "some words of a text\n" * 3 + "word " * 100 + "\n")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    main, flags = RECIPES["perplexity"]
    more = ["--dataset", str(rows), "--streaming", "false", "--min_tokens", "2", "--output_dir", str(tmp_path / "out")]
    assert main(["--model", str(model), *flags, "--device", "cpu", *more]) == 0
    assert "Generating" not in screen.getvalue() and "examples/s" not in screen.getvalue()
