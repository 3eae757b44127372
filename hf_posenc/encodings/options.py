"""Values of options: one declaration of what each kind may be."""

from __future__ import annotations

import math
from typing import Any


def positive(name: str, value: Any, at_least: float = 0.0) -> float:
    """`value` as a finite float above zero and not below `at_least`.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0 or value < at_least:
        bound = f"at least {at_least:g}" if at_least else "above 0"
        raise ValueError(f"{name} must be a finite number {bound}, got {value!r}")
    return float(value)


def count(name: str, value: Any, at_least: int = 1) -> int:
    """`value` as an integer not below `at_least`.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}")
    return value
