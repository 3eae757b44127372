"""What all results share: JSON on disk, written in one step, and what Ctrl-C leaves."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from ..files import write_atomically


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
