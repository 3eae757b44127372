"""Tables on the screen that lose nothing, however narrow it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

GAP = 2
"""Blanks between columns."""
UNBOUND = 10_000


def screen() -> Console:
    """Standard output as wide as the terminal, or as $COLUMNS says; a file or a pipe is as wide as it takes."""
    bound = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if bound else UNBOUND, highlight=False)


def print_numbers(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Numbers under a title, by name: what does not fit side by side goes into further tables, with the names again.

    Args:
        title: above the table.
        header: of each column, the names first.
        rows: as many cells each.
    """
    console = screen()
    console.print(title, style="italic", markup=False)
    for columns in side_by_side(header, rows, console.width):
        table = Table(box=None, pad_edge=False)
        table.add_column(header[0], overflow="fold")
        for column in columns:
            table.add_column(header[column], justify="right", overflow="fold")
        for row in rows:
            table.add_row(row[0], *(row[column] for column in columns))
        console.print(table)


def print_texts(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Texts by name: names in one line each; where the rest is too wide, the longest texts get the room and the others a word a line."""
    console, columns = screen(), list(zip(header, *rows, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    tight = sum(widths) + GAP * (len(widths) - 1) > console.width
    table = Table(box=None, pad_edge=False)
    for column, width in zip(columns, widths, strict=True):
        word = max(cell_len(each) for cell in column for each in cell.split())
        fixed = column is columns[0] or width == max(widths) or not tight
        table.add_column(column[0], overflow="fold", no_wrap=column is columns[0], width=None if fixed else word)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def side_by_side(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[list[int]]:
    """Which columns after the first stand beside it in each table; at least one."""
    widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
    left = room = width - min(widths[0], width // 2)
    chosen: list[int] = []
    for column in range(1, len(header)):
        if chosen and widths[column] + GAP > left:
            yield chosen
            left, chosen = room, []
        left -= widths[column] + GAP
        chosen.append(column)
    yield chosen
