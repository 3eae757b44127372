"""What was measured lies on disk, so that the same question goes on after it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_atomically
from .measure import versions
from .models import digest, weights_digest

FOLDER = "measured"


@dataclass(frozen=True)
class Kept:
    """Measurements of one model.

    Args:
        folder: where they lie; None keeps nothing.
        model: identifies it, with its dtype and device.
    """

    folder: Path | None
    model: dict[str, str]

    @classmethod
    def of(cls, folder: str | os.PathLike | None, **model: str) -> Kept:
        """In a folder of that folder."""
        return cls(None if folder is None else Path(folder) / FOLDER, model)

    @classmethod
    def of_model(cls, folder: str | os.PathLike | None, model: Any) -> Kept:
        """Those of this model."""
        return cls.of(folder, weights=weights_digest(model), dtype=str(model.dtype), device=str(model.device))

    def get(self, asked: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was measured before, or `measure()`, which then is kept; another package, model or question is another file."""
        if self.folder is None:
            return measure()
        asked = json.loads(json.dumps({**asked, **self.model, "versions": versions()}))  # as it will be read
        file = self.folder / f"{digest(asked)}.json"
        try:
            before = json.loads(file.read_text())
            if before["asked"] == asked:  # of many, two may have one digest
                return before["found"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        found = measure()
        write_atomically(file, json.dumps({"asked": asked, "found": found}, indent=1) + "\n")
        return found
