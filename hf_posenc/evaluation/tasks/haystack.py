"""Needles between the units of a haystack."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from .context import Growing

Unit = Callable[[int], str]
"""The nth unit of a haystack without end."""


@dataclass
class Haystack:
    """Needles, each after its share of the units; the needles keep their order where their shares are alike.

    Args:
        unit: the haystack.
        needles: what is hidden in it, with the share of the units before each; sorted by it.
        joint: between units: a space, or a new line.
    """

    unit: Unit
    needles: list[tuple[float, str]]
    joint: str
    made: list[str] = field(default_factory=list)

    def context(self) -> Growing:
        """As a context that grows by units."""
        return Growing(self.text, self.rest)

    def text(self, count: int) -> str:
        """`count` units and all needles."""
        units = self.units(0, count)
        found, last = [], 0
        for depth, needle in self.needles:
            at = round(depth * count)
            found += [*units[last:at], needle]
            last = at
        return self.joint.join([*found, *units[last:]])

    def rest(self, count: int) -> str:
        """The units that follow."""
        return self.joint + self.joint.join(self.units(count, count + 64))

    def units(self, start: int, stop: int) -> list[str]:
        """Some of them; each is made once, in their order."""
        while len(self.made) < stop:
            self.made.append(self.unit(len(self.made)))
        return self.made[start:stop]


def in_order(needles: list[str], depths: list[float]) -> list[tuple[float, str]]:
    """Needles one after the other at these depths, the smallest first."""
    return [*zip(sorted(depths), needles, strict=True)]


def with_first_at(depth: float, first: str, others: list[str], depths: list[float]) -> list[tuple[float, str]]:
    """One needle at a depth that was asked for, the others at theirs."""
    rest = in_order(others, depths)
    at = bisect_left(rest, depth, key=lambda each: each[0])
    return [*rest[:at], (depth, first), *rest[at:]]
