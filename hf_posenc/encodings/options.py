"""Values of options: one declaration of what each kind may be."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

LARGEST = 1e6
"""Of numbers that have no reason to be large: products of a few of them are finite in float32."""
LARGEST_FLOAT = sys.float_info.max
LARGEST_BASE = 1e12
"""Of the bases of frequencies."""
FARTHEST = 1 << 40
"""Of distances and lengths in tokens: any text is shorter, and float64 counts them exactly."""
LONGEST_TABLE = 1 << 24
"""Of rows of a table that is held in memory."""


def positive(name: str, value: Any, at_least: float = 0.0, at_most: float = LARGEST) -> float:
    """`value` as a float above zero, not below `at_least` and not above `at_most`.

    Raises:
        ValueError: it is not.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not max(at_least, 0) <= value <= at_most or value == 0:  # NaN is not within anything
        bound = f"at least {at_least:g}" if at_least else "above 0"
        raise ValueError(f"{name} must be a finite number {bound} and at most {at_most:g}, got {value!r}")
    return float(value)


def number(name: str, value: Any, at_least: float = -math.inf, at_most: float = math.inf) -> float:
    """`value` as a finite float, not below `at_least` and not above `at_most`.

    Raises:
        ValueError: it is not.
    """
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not max(at_least, -LARGEST_FLOAT) <= value <= min(at_most, LARGEST_FLOAT):  # NaN is not within anything
        bounds = [f"{word} {bound:g}" for word, bound in (("at least", at_least), ("at most", at_most)) if math.isfinite(bound)]
        raise ValueError(f"{name} must be a finite number{' of ' * bool(bounds)}{' and '.join(bounds)}, got {value!r}")
    return float(value)


def count(name: str, value: Any, at_least: int = 1, at_most: int = FARTHEST) -> int:
    """`value` as an integer not below `at_least` and not above `at_most`.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}")
    if value > at_most:
        raise ValueError(f"{name} must be an integer of at most {at_most}, got {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    """`value`, which is True or False.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} is True or False, got {value!r}")
    return value


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """`value`, which is one of `choices`.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}, got {value!r}")
    return value


def indices(name: str, value: Any, total: int) -> tuple[int, ...]:
    """`value` as indices below `total`, in ascending order: an index, a list of them, or a slice in words, such as "::2" or "4:".

    Raises:
        ValueError: it is none of these, selects nothing, or an index does not exist.
    """
    try:
        parts = [int(part) if part else None for part in value.split(":")] if isinstance(value, str) and ":" in value else None
        if isinstance(value, str) and parts is None:
            value = [int(part) for part in value.split(",")]
        found = range(total)[slice(*parts)] if parts else [value] if isinstance(value, int) else list(value)
    except (ValueError, TypeError):
        raise ValueError(f'{name} is an index, a list of them, or a slice such as "::2", got {value!r}') from None
    for index in found:
        if isinstance(index, bool) or not isinstance(index, int) or not -total <= index < total:
            raise ValueError(f"{name} has {index!r}, but there are 0 to {total - 1}")
    if not found:
        raise ValueError(f"{name} = {value!r} selects nothing, of 0 to {total - 1}")
    return tuple(sorted({index % total for index in found}))


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """`value`, a sequence of ids of tokens, each once.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, list | tuple) or any(
        isinstance(x, bool) or not isinstance(x, int) or not 0 <= x < LONGEST_TABLE for x in value
    ):
        raise ValueError(f"{name} is a list of ids of tokens, such as [11, 29], got {value!r}")
    return tuple(dict.fromkeys(value))
