"""Results of several tasks on the screen, as files of numbers and as heat maps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import write_atomically
from ...tables import print_numbers
from ...variants import file_name
from ..report import csv_text, optional, pictures
from ..tasks import TASKS
from .effective import Threshold, interval, mean, means
from .result import RetrievalResult

Results = Mapping[str, Mapping[str, RetrievalResult]]
"""encoding -> task -> what was found."""


def report(results: Results, threshold: Threshold, output: Path, model: Any) -> None:
    """Print the comparison; write it as retrieval.csv, retrieval.json and heat maps."""
    print_table(results, threshold)
    write_atomically(output / "retrieval.csv", to_csv((name, result) for name, tasks in results.items() for result in tasks.values()))
    write_atomically(output / "retrieval.json", json.dumps(summary(results, threshold), indent=2) + "\n")
    print(f"written to {output}: one JSON per encoding and task, retrieval.csv, retrieval.json")
    with pictures():
        draw(results, output, getattr(model.config.get_text_config(), "max_position_embeddings", None))


def print_table(results: Results, threshold: Threshold) -> None:
    """Print the score of each encoding in each task, by length."""
    all_of = [result for tasks in results.values() for result in tasks.values()]
    first, lengths = all_of[0], sorted({length for result in all_of for length in result.lengths})
    rows = []
    for name, tasks in results.items():
        for result in tasks.values():
            mine = result.scores()
            scores = [optional(mean(mine[length]) if length in mine else None, ".0%") for length in lengths]
            nats = optional(result.mean("nats", max(mine)) if mine else None, ".2f")
            controls = [optional(control(result, context), ".0%") for context in ("short", "other")]
            rows.append([f"{label(name, result)} {result.protocol}", *controls, *scores, effective([mine], threshold), nats])
        made_up = [result for task, result in tasks.items() if not TASKS[task]().apart]
        if len(made_up) > 1:
            every = [found for result in made_up if (found := result.scores())]
            over = means(every) if every else {}
            scores = [optional(over.get(length), ".0%") for length in lengths]
            rows.append([f"{label(name, first_of(tasks))} mean", "", "", *scores, effective(every, threshold), ""])
    scored = "score of the generated answers" if first.cells[0].generated is not None else "answers exact, teacher-forced"
    header = ["encoding and task", "oracle", "chance", *(f"{length:,}" for length in lengths), "effective length", "nats"]
    print_numbers(f"{Path(first.model).name}: {scored}", header, rows)
    of = "" if threshold.absolute else " of that at the shortest length"
    print(
        "oracle, chance: the same questions with hardly more context than they need, and with that of other questions; effective length: "
        f"up to where the score is not below {threshold.share:.1%}{of} (between: 95 % of bootstrap draws); nats: at the longest; "
        f"{first.dtype}, {first.attention}"
    )
    sources = {result.protocol: result.source for result in all_of if result.source.endswith("-style")}
    if apart := sorted({result.protocol for result in all_of if TASKS[result.protocol]().apart}):
        print(f"mean: without {', '.join(apart)}, whose questions are not made up")
    if sources:
        print("data that are not the authors':", ", ".join(f"{task} ({source})" for task, source in sources.items()))


def label(name: str, result: RetrievalResult) -> str:
    """The encoding as it was asked for, with its other options, but for lists as the factors in a file that is named."""
    others = {key: value for key, value in result.options.items() if not re.search(rf"\b{key}=", name) and not isinstance(value, list)}
    return f"{name}{''.join(f' {key}={value}' for key, value in others.items())}{'' if result.complete else ' (unfinished)'}"


def first_of(tasks: Mapping[str, RetrievalResult]) -> RetrievalResult:
    """One of the results of an encoding."""
    return next(iter(tasks.values()))


def control(result: RetrievalResult, context: Any) -> float | None:
    """The score with a short context, or with another."""
    found = [score for cell in result.control(context) for score in cell.scores]
    return mean(found) if found else None


def effective(tasks: Sequence[Mapping[int, Sequence[float]]], threshold: Threshold) -> str:
    """The effective length and its interval, in words."""
    if not tasks or not all(tasks):
        return "-"
    low, high = interval(tasks, threshold.length)
    return f"{threshold.length(means(tasks)):,} ({low:,}-{high:,})"


def to_csv(results: Iterable[tuple[str, RetrievalResult]]) -> str:
    """One line for each cell of results that have names."""
    rows = [
        {
            "encoding": name,
            "options": " ".join(f"{key}={value}" for key, value in result.options.items()),
            "task": result.protocol,
            "complete": result.complete,
            **vars(cell),
            "fingerprint": result.fingerprint,
        }
        for name, result in results
        for cell in result.cells
    ]
    return csv_text(rows)


def summary(results: Results, threshold: Threshold) -> dict[str, Any]:
    """For each encoding and task the scores, their intervals, the controls and the effective length."""
    return {
        "threshold": {"share": threshold.share, "absolute": threshold.absolute},
        "encodings": {
            name: {
                task: {
                    "source": result.source,
                    "complete": result.complete,
                    "oracle": control(result, "short"),
                    "chance": control(result, "other"),
                    "scores": {length: mean(values) for length, values in result.scores().items()},
                    "intervals": {length: interval([{length: values}], over(length)) for length, values in result.scores().items()},
                    "effective_length": threshold.length(means([result.scores()])) if result.lengths else None,
                    "effective_interval": interval([result.scores()], threshold.length) if result.lengths else None,
                }
                for task, result in tasks.items()
            }
            for name, tasks in results.items()
        },
    }


def over(length: int) -> Any:
    """What takes the mean of a length."""
    return lambda found: found[length]


def draw(results: Results, output: Path, native: int | None) -> None:
    """A heat map of tasks and lengths for each encoding, and one of depths and lengths where depths were asked for."""
    from hf_posenc.plotting import plot_retrieval

    for name, tasks in results.items():
        shown = {(length, task): mean(values) for task, result in tasks.items() for length, values in result.scores().items()}
        title = f"{Path(first_of(tasks).model).name}\n{label(name, first_of(tasks))}"
        if shown:
            print(plot_retrieval(shown, output / f"retrieval-{file_name(name)}.png", title=title, train_length=native))
        for task, result in tasks.items():
            if grid := result.grid():
                file = output / f"retrieval-{file_name(name)}-{task}.png"
                print(plot_retrieval(grid, file, title=f"{title}: {task}", train_length=native))
