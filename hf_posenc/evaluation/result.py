"""What all results share: JSON on disk, written in one step, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, cast


class Saved:
    """A dataclass that goes to disk as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers."""
        return asdict(cast(Any, self))

    def save(self, path: str | Path) -> Path:
        """Write the result as JSON, atomically. Returns the path."""
        return write_atomically(path, json.dumps(self.to_dict(), indent=2) + "\n")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. `result` holds the documents that were finished; None where there are none."""

    def __init__(self, result: Any):
        super().__init__()
        self.result = result


def write_atomically(path: str | Path, text: str) -> Path:
    """Write a text file so that it is either complete or not there, also if the process dies meanwhile."""
    return replace_atomically(path, lambda file: file.write(text.encode()))


def replace_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> Path:
    """The same for a file of bytes that `write` fills."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path
