"""What a study leaves: a table, two CSV files, a picture and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from ..files import write_atomically
from ..plotting import save
from ..tables import print_numbers
from .html import page
from .plots import length_figure
from .runs import Study, curve
from .summary import Summary, summarize


def report(study: Study) -> None:
    """Print the table, and write compare.csv, summary.csv, compare.png and report.html."""
    summaries, arguments = summarize(study), study.arguments
    folder = study.output
    print_table(study, summaries)
    write_atomically(folder / "compare.csv", csv_text(run_rows(study)))
    write_atomically(folder / "summary.csv", csv_text(summary_rows(study, summaries)))
    if any(s.perplexity for s in summaries):
        save(length_figure(summaries, title(study), arguments.train_length, arguments.unit), folder / "compare.png")
    write_atomically(folder / "report.html", page(study, summaries, title(study), describe_work(study)))
    print(f"one JSON per run, compare.csv, summary.csv, compare.png and report.html in {folder}")


def title(study: Study) -> str:
    """What was trained how."""
    a = study.arguments
    return f"{a.model or f'{a.model_type}, {a.num_layers} layers'}, trained {a.steps:,} steps at {a.train_length:,} {a.unit}s"


def describe_work(study: Study) -> str:
    """Steps and tokens of a run."""
    a, passes = study.arguments, study.arguments.steps * study.arguments.batch_size / len(study.corpus.blocks)
    size = f"{a.steps:,} steps of {a.batch_size} x {a.train_length:,} {a.unit}s"
    return f"{size} each ({passes:.1f} passes over {study.corpus.blocks.numel():,} {a.unit}s)"


def print_table(study: Study, summaries: list[Summary]) -> None:
    """Perplexity by length."""
    a, seeds = study.arguments, study.arguments.seeds
    caption = f"perplexity per {a.unit}" + (
        f", mean ± sample standard deviation over seeds {', '.join(map(str, seeds))}" if seeds[1:] else ""
    )
    values = [[str(s.perplexity.get(length, "-")) for length in a.lengths] for s in summaries]
    rows = [[s.label, *found, f"{s.parameters:,}", f"{s.seconds:.0f}"] for s, found in zip(summaries, values, strict=True)]
    print_numbers(caption, ["encoding", *(f"{n:,}" for n in a.lengths), "parameters", "train s"], rows)
    if any(len(s.perplexity) < len(a.lengths) for s in summaries):
        print("-: the encoding is not defined at that length")


def run_rows(study: Study) -> Iterable[list[Any]]:
    """One line for each run that is done."""
    lengths = study.arguments.lengths
    yield ["encoding", "seed", *lengths, "parameters", "train_seconds", "fingerprint"]
    for each in study.runs:
        if result := study.results.get(each.name):
            values = [number(curve(result).get(length)) for length in lengths]
            yield [each.variant.label, each.seed, *values, result["parameters"], number(result["train_seconds"]), result["fingerprint"]]


def summary_rows(study: Study, summaries: list[Summary]) -> Iterable[list[Any]]:
    """One line for each encoding: mean and sample standard deviation at each length."""
    lengths = study.arguments.lengths
    yield ["encoding", "seeds", *(f"{length} {kind}" for length in lengths for kind in ("mean", "std"))]
    for s in summaries:
        known = [s.perplexity.get(length) for length in lengths]
        yield [s.label, len(s.fingerprints), *(number(value) for k in known for value in ((k.mean, k.std) if k else (None, None)))]


def number(value: float | None) -> str:
    """Six digits; empty for None."""
    return "" if value is None else f"{value:.6g}"


def csv_text(rows: Iterable[list[Any]]) -> str:
    """Rows as CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
