"""What reports share: the progress bar, numbers, table files."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text
from transformers import logging

from ..extras import MissingExtra


class TokensPerSecond(ProgressColumn):
    """Tokens done per second."""

    def render(self, task: Task) -> Text:
        """The speed of one task, empty before the first tokens."""
        return Text(f"{task.speed:,.0f} tokens/s" if task.speed else "", style="progress.data.speed")


class Bar:
    """Tokens done of all that a run takes, on stderr where that is a terminal, with the time left for all of them.

    Args:
        tokens: how many; None shows a bar without an end.
        shown: by one of the processes.
    """

    def __init__(self, tokens: int | None, shown: bool = True):
        columns = (TextColumn("{task.description}"), BarColumn(16), TaskProgressColumn(), TokensPerSecond(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=Console(stderr=True), disable=not (shown and sys.stderr.isatty()))
        self.task = self.progress.add_task("", total=tokens)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def name(self, part: str) -> None:
        """Which part of the run is next."""
        self.progress.update(self.task, description=escape(part))

    def advance(self, tokens: float) -> None:
        """So many more are done."""
        self.progress.advance(self.task, tokens)


@contextmanager
def own_bar_only() -> Iterator[None]:
    """Without the many bars of transformers (weights) and datasets (rows); on a screen, those of a download stay."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from huggingface_hub import utils as hub

    weights, rows, downloads = logging.is_progress_bar_enabled(), not are_progress_bars_disabled(), not hub.are_progress_bars_disabled()
    logging.disable_progress_bar()
    disable_progress_bars()
    if downloads and sys.stderr.isatty():
        hub.enable_progress_bars()
    try:
        yield
    finally:
        if downloads:
            hub.enable_progress_bars()
        if weights:
            logging.enable_progress_bar()
        if rows:
            enable_progress_bars()


@contextmanager
def pictures() -> Iterator[None]:
    """What is drawn within is left out where nothing draws, in one line that says so; the numbers are what counts."""
    try:
        yield
    except MissingExtra as missing:
        print(f"no pictures: {missing}")


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
