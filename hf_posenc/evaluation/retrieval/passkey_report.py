"""Passkey results on the screen, as a table file and as heat maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files import write_atomically
from ...tables import print_numbers
from ...variants import file_name
from ..report import optional, pictures
from .report import label, to_csv
from .result import RetrievalResult

Results = Mapping[str, RetrievalResult]


def report(results: Results, output: Path, model: Any) -> None:
    """Print the comparison; write it as passkey.csv and one heat map for each encoding."""
    from hf_posenc.plotting import plot_retrieval

    print_table(results)
    write_atomically(output / "passkey.csv", to_csv(results.items()))
    native = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    print(f"written to {output}: one JSON per encoding, passkey.csv")
    with pictures():
        for name, result in results.items():
            file, title = output / f"passkey-{file_name(name)}.png", f"{heading(result)}\n{label(name, result)}"
            print(plot_retrieval(result.grid(), file, title=title, train_length=native))


def print_table(results: Results) -> None:
    """Print how many prompts of each length were answered exactly, over all depths, side by side."""
    first = next(iter(results.values()))
    lengths = sorted({length for result in results.values() for length in result.lengths})
    header = ["encoding", *(f"{length:,}" for length in lengths), "tokens right", "nats", "generated", "tokens/s", "peak GB"]
    rows = [
        [label(name, result), *(f"{found}/{of}" for found, of in map(result.found, lengths)), *footnotes(result, lengths[-1])]
        for name, result in results.items()
    ]
    print_numbers(f"{heading(first)}: prompts answered exactly", header, rows)
    depths = ", ".join(f"{depth:g}" for depth in sorted({cell.depth for cell in first.cells if cell.depth is not None}))
    print(f"tokens right, nats of the answer and generated: at {lengths[-1]:,}; depths {depths}; {first.dtype}, {first.attention}")


def heading(result: RetrievalResult) -> str:
    """What was measured, in a few words."""
    task = result.task
    needles = "" if task["needles"] == 1 else f", {task['needles']} needles ({task['ask']} asked for)"
    distractors = "" if not task["distractors"] else f", {task['distractors']} distractors"
    return f"{Path(result.model).name}: passkey of {task['digits']} digits{needles}{distractors}"


def footnotes(result: RetrievalResult, length: int) -> list[str]:
    """The other columns of one row, over the depths at the longest length."""
    return [
        optional(result.mean("token_accuracy", length), ".0%"),
        optional(result.mean("nats", length), ".2f"),
        optional(result.mean("generated", length), ".0%"),
        f"{result.tokens_per_second:,.0f}",
        optional(None if result.peak_memory is None else result.peak_memory / 1e9, ".2f"),
    ]
