"""What reports share: the progress bar, numbers, table files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from .token_nll import Progress as Advance


class TokensPerSecond(ProgressColumn):
    """Tokens done per second."""

    def render(self, task: Task) -> Text:
        """The speed of one task, empty before the first tokens."""
        return Text(f"{task.speed:,.0f} tokens/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def progress_bar(name: str, tokens: int | None) -> Iterator[Advance]:
    """A bar on stderr over that many tokens, without an end where that is None; yields what to call with each number of tokens done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TokensPerSecond(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=tokens)
        yield lambda done: bar.advance(task, done)


def optional(value: float | None, spec: str) -> str:
    """The number, or a dash where there is none."""
    return "-" if value is None else format(value, spec)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a table file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
