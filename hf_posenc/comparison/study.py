"""A study: all its runs, each trained and tested once, one JSON file each."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..command import exit_status
from ..evaluation.measure import versions
from ..evaluation.models import encoded, inspect_model
from ..evaluation.report import own_bar_only
from ..files import check_writable, write_atomically
from ..flags import parse
from ..page import check_pages
from .arguments import APART, CompareArguments, Variant, read_variants
from .base import build, open_base, weights_digest
from .data import digest, read_corpus
from .measure import nats_by_length, nats_by_position
from .report import describe_work, report
from .runs import Result, Run, Study, curve
from .training import train


class StudyError(ValueError):
    """Some runs of a study failed; the others are done."""


def main(argv: list[str] | None = None) -> int:
    """Run a study; returns the exit status."""
    return exit_status(lambda: run(*parse([CompareArguments], "hf-posenc compare", argv)))


@own_bar_only()
def run(arguments: CompareArguments) -> list[Result]:
    """Do what is not on disk yet, then report all of it.

    Raises:
        StudyError: runs failed; the others were done and reported.
    """
    study = prepare(arguments)
    if arguments.dry_run:
        list_runs(study)
        return []
    try:
        perform_all(study)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        raise
    finally:  # a report of what is done also then
        if study.results:
            report(study)
    if study.failures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in study.failures.items())
        raise StudyError(f"{len(study.failures)} of {len(study.runs)} runs failed ({reasons})")
    return list(study.results.values())


def prepare(arguments: CompareArguments) -> Study:
    """Everything that can go wrong by mistake happens here, before anything is trained or written."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 or torch.cuda.device_count() > 1:
        raise ValueError("a study runs in one process on one device: start it without torchrun, and choose with CUDA_VISIBLE_DEVICES=0")
    if not arguments.dry_run:
        check_pages()
        check_writable(arguments.output_dir)
    variants = read_variants(arguments)
    base = open_base(arguments)
    corpus = read_corpus(arguments, base)
    model = base.start(arguments.seeds[0])
    for variant in variants:
        with encoded(model, variant.name, variant.options):
            pass
    study = Study(arguments, base, corpus, [])
    study.runs = [each for seed in arguments.seeds for each in plan(study, variants, seed)]
    return study


def plan(study: Study, variants: list[Variant], seed: int) -> list[Run]:
    """The runs of one seed. They start from the same weights and see the same batches: the digests say so."""
    shared = {name: value for name, value in asdict(study.arguments).items() if name not in APART}
    same = {"seed": seed, "start": weights_digest(study.base.start(seed)), "batches": digest(study.batches(seed))}
    given = {**shared, **same, "test": digest(study.corpus.test)}
    return [Run(v, seed, {**given, "encoding": v.label, "options": v.options}, study.output) for v in variants]


def list_runs(study: Study) -> None:
    """Print the runs with what is on disk of them."""
    for each in study.runs:
        print(f"{each.state:<12} {each.name:<40} {each.file}")
    done = sum(each.file.exists() for each in study.runs)
    print(f"{len(study.runs)} runs, {done} done, {describe_work(study)}")


def perform_all(study: Study) -> None:
    """All runs in turn; one that fails does not stop the others."""
    print(f"{len(study.runs)} runs, {describe_work(study)}")
    steps = study.arguments.steps
    with progress_bar() as progress:
        bar = progress.add_task("", total=len(study.runs) * steps)
        for index, each in enumerate(study.runs):
            progress.update(bar, description=each.name)
            line = perform(study, each, lambda done, before=index * steps: progress.update(bar, completed=before + done))  # type: ignore[misc]
            gc.collect()  # `Trainer` and its model hold each other, and memory of a GPU does not make Python look
            progress.update(bar, completed=(index + 1) * steps)
            progress.console.print(f"{each.name}: {line}", highlight=False, markup=False, soft_wrap=True)


def perform(study: Study, each: Run, tick: Callable[[int], None]) -> str:
    """One run, or what an earlier call found. Returns the line that tells of it."""
    try:
        study.results[each.name] = found = finished(study, each) or one_run(study, each, tick)
    except Exception as error:
        study.failures[each.name] = " ".join(f"{type(error).__name__}: {error}".split())
        write_atomically(each.error, traceback.format_exc())
        return f"failed: {study.failures[each.name]} (traceback in {each.error})"
    return "perplexity " + ", ".join(f"{value:.2f} at {length:,}" for length, value in curve(found).items())


def finished(study: Study, each: Run) -> Result | None:
    """The result on disk; with --overwrite there is none, and no checkpoint either."""
    if study.arguments.overwrite:
        shutil.rmtree(each.checkpoints, ignore_errors=True)
        return None
    return json.loads(each.file.read_text(encoding="utf-8")) if each.file.exists() else None


def one_run(study: Study, each: Run, tick: Callable[[int], None]) -> Result:
    """Train, test, write the result."""
    arguments = study.arguments
    model = build(study.base, each.variant, each.seed)
    training = train(model, study.batches(each.seed), arguments, each.seed, each.checkpoints, tick)
    start = time.perf_counter()
    nats = nats_by_length(model, study.corpus.test, arguments.lengths)
    longest = max((length for length, value in nats.items() if value is not None), default=None)
    found = {
        "settings": each.settings,
        "protocol": "disjoint",
        "parameters": sum(p.numel() for p in model.parameters()),
        "fingerprint": inspect_model(model)[0],
        "device": str(model.device),
        "attention": model.config._attn_implementation,
        "versions": versions(),
        "train_loss": training.losses,
        "nats": nats,
        "by_position": nats_by_position(model, study.corpus.test, longest) if longest else [],
        "train_seconds": training.seconds,
        "resumed_from": training.resumed_from,
        "test_seconds": time.perf_counter() - start,
    }
    write_atomically(each.file, json.dumps(found, indent=1))
    shutil.rmtree(each.checkpoints, ignore_errors=True)
    each.error.unlink(missing_ok=True)
    return json.loads(json.dumps(found))  # as another call reads it


def progress_bar() -> Progress:
    """Over all steps of all runs, with the time left; none in a file or a pipe."""
    columns = (TextColumn("{task.description:>12}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn())
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), disable=not sys.stdout.isatty())
