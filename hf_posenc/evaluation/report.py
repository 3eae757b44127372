"""Results on the screen and as a table file."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .result import Result
from .token_nll import Progress as Advance


class TokensPerSecond(ProgressColumn):
    """Tokens done per second."""

    def render(self, task: Task) -> Text:
        """The speed of one task, empty before the first tokens."""
        return Text(f"{task.speed:,.0f} tokens/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def progress_bar(name: str, tokens: int) -> Iterator[Advance]:
    """A bar on stderr over that many tokens; yields what to call with each number of tokens done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TokensPerSecond(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=tokens)
        yield lambda done: bar.advance(task, done)


def print_table(results: dict[str, Result]) -> None:
    """Print the perplexity of each encoding at each length side by side."""
    first = next(iter(results.values()))
    table = Table(title=f"{heading(first)}, {first.scores[-1].tokens_scored:,} tokens scored at {first.scores[-1].length:,}")
    table.add_column("encoding", no_wrap=True)
    for title in [*(f"{score.length:,}" for score in first.scores), f"last-{first.last_k} nats", "± nats", "tokens/s", "peak GB"]:
        table.add_column(title, justify="right", no_wrap=True)
    for name, result in results.items():
        table.add_row(name, *(f"{score.perplexity:.4g}" for score in result.scores), *footnotes(result))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def heading(result: Result) -> str:
    """What was measured, in a few words."""
    return f"{Path(result.model).name}: perplexity, protocol {result.protocol}"


def footnotes(result: Result) -> list[str]:
    """The other columns of one row, at the longest length."""
    longest = result.scores[-1]
    return [
        optional(longest.last_nats, ".3f"),
        optional(longest.standard_error, ".3f"),
        f"{result.tokens_per_second:,.0f}",
        optional(None if result.peak_memory is None else result.peak_memory / 1e9, ".2f"),
    ]


def optional(value: float | None, spec: str) -> str:
    """The number, or a dash where there is none."""
    return "-" if value is None else format(value, spec)


def to_csv(results: dict[str, Result]) -> str:
    """One line for each encoding and length."""
    rows = [
        {
            "encoding": name,
            "options": " ".join(f"{key}={value}" for key, value in result.options.items()),
            **vars(score),
            "fingerprint": result.fingerprint,
        }
        for name, result in results.items()
        for score in result.scores
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
