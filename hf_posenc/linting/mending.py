"""Writing what is certain."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..files import write_atomically
from .finding import REMOVED, Finding


def mended(entries: Mapping[str, Any], found: Iterable[Finding]) -> dict[str, Any]:
    """A copy of entries, in their order, with what findings are certain of; what is new comes last."""
    changed: dict[str, Any] = copy.deepcopy(dict(entries))
    for finding in found:
        for place, value in finding.mend.items():
            holder: Any = changed
            for key in place[:-1]:
                holder = holder[key]
            if value is REMOVED:
                holder.pop(place[-1], None)
            else:
                holder[place[-1]] = copy.deepcopy(value)
    return changed


def write_mended(path: Path, entries: Mapping[str, Any]) -> Path:
    """A JSON file with other entries, indented as it was."""
    line = next((line for line in path.read_text(encoding="utf-8").splitlines() if line[:1].isspace()), "  ")
    indent = line[: len(line) - len(line.lstrip())]
    return write_atomically(path, json.dumps(entries, indent=indent, ensure_ascii=False) + "\n")
