"""Which prompts a passkey run is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from .prompts import Prompts


@dataclass(frozen=True)
class Grid:
    """Prompts of all lengths and depths.

    Args:
        lengths: in tokens, ascending.
        depths: shares of the filler before the needle, ascending.
        trials: prompts for each length and depth.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    trials: int

    @classmethod
    def of(cls, lengths: Sequence[int], depths: float | Sequence[float], trials: int) -> Grid:
        """The grid that was asked for; one number of depths above 1 is how many, in equal steps from 0 to 1.

        Raises:
            ValueError: no length, no trial, or a depth outside 0 ... 1.
        """
        if not lengths:
            raise ValueError("lengths must name at least one length in tokens")
        if trials < 1:
            raise ValueError(f"trials must be at least 1, got {trials}")
        return cls(tuple(sorted(set(lengths))), depth_values(depths), trials)

    def __iter__(self) -> Iterator[tuple[int, float, int]]:
        """Length, depth and number of each prompt, short ones first."""
        return product(self.lengths, self.depths, range(self.trials))

    @property
    def tokens(self) -> int:
        """Of all prompts together."""
        return sum(self.lengths) * len(self.depths) * self.trials

    def check(self, prompts: Prompts) -> None:
        """Raise ValueError where a length leaves no room for the words around the filler, with the shortest that does."""
        shortest = max(prompts.shortest(*each) for each in product(self.depths, range(self.trials)))
        if self.lengths[0] < shortest:
            raise ValueError(f"a length of {self.lengths[0]:,} tokens is too short: the words around the filler need {shortest:,}")


def depth_values(depths: float | Sequence[float]) -> tuple[float, ...]:
    """Ascending values from one number of steps, or the values themselves."""
    given = [depths] if isinstance(depths, (int, float)) else [*depths]
    if len(given) == 1 and given[0] > 1 and given[0] == int(given[0]):
        steps = int(given[0])
        return tuple(step / (steps - 1) for step in range(steps))
    if not given or not all(0 <= depth <= 1 for depth in given):
        raise ValueError(f"depths must be values from 0 to 1, or one whole number of steps of at least 2, got {given}")
    return tuple(sorted({float(depth) for depth in given}))
