"""Finished work on disk, one JSON line each, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ..files import naming


class Line(Protocol):
    """What is kept of one piece of work."""

    @property
    def index(self) -> int:
        """Its number."""

    @property
    def sha256(self) -> str:
        """Identifies its tokens."""

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers."""

    @classmethod
    def from_dict(cls, found: dict[str, Any], /) -> Any:
        """What `to_dict` gave."""


Kept = TypeVar("Kept", bound=Line)


class Journal(Generic[Kept]):
    """An append-only file of lines for each process that shares a run, `STEM.RANK.jsonl`; all of them are read at the start.

    A line is on disk before the next document begins. A torn last line, of a process that died while writing it, is ignored. A file with
    others that cannot be read is named in a warning; it stays, and what they held is done again.

    Args:
        stem: path without the rank and the suffix.
        kind: the class of its lines.
        rank: of this process.
    """

    def __init__(self, stem: str | os.PathLike, kind: type[Kept], rank: int = 0):
        self.stem, self.kind = Path(stem), kind
        self.file = self.stem.with_name(f"{self.stem.name}.{rank}.jsonl")
        self.done = {(line.index, line.sha256): line for line in self.read()}

    @property
    def files(self) -> list[Path]:
        """Those of all processes."""
        return sorted(path for path in self.stem.parent.glob("*.jsonl") if path.name.startswith(f"{self.stem.name}."))

    def read(self) -> Iterator[Kept]:
        """All complete lines of all processes."""
        for path in self.files:
            lines = path.read_bytes().split(b"\n")
            found = [line for line in map(self.parsed, lines) if line is not None]
            unreadable = sum(map(bool, lines[:-1])) - len(found)
            if unreadable > 0:
                warnings.warn(f"{path} has {unreadable} lines that cannot be read: what they held is measured again", stacklevel=2)
            yield from found

    def parsed(self, line: bytes) -> Kept | None:
        """What a line holds; None where it cannot be read."""
        try:
            return self.kind.from_dict(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def add(self, record: Kept) -> None:
        """Append one record. It starts on a new line whatever a process that died has left at the end of the file."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with naming(self.file), open(self.file, "a", encoding="utf-8") as file:
            file.write("\n" * (file.tell() > 0) + json.dumps(record.to_dict()))
            file.flush()
            os.fsync(file.fileno())
