"""What is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..doctor.faults import Fault

ERROR, WARNING, NOTE = SEVERITIES = "error", "warning", "note"
REMOVED = object()
"""In place of a value of `Finding.mend`: the entry goes."""
Place = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is not as it seems.

    Args:
        rule: what finds such things, by name.
        severity: "error": somewhere another model is computed, or none. "warning": it may be so. "note": worth knowing.
        where: the entry, the engine, or both.
        what: happens. advice: what to do.
        mend: entries of the file that are certain, by where they stand; empty where nothing is.
    """

    rule: str
    severity: str
    where: str
    what: str
    advice: str
    mend: Mapping[Place, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, fault: Fault) -> Finding:
        """A fault that the doctor has found."""
        return cls("scaling", ERROR if fault.grave else WARNING, fault.where, fault.what, fault.advice)
