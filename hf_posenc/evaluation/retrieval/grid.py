"""Which prompts a run is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from .prompts import Prompts

Context = Literal["whole", "short", "other"]
"""As long as asked for; hardly more than what is needed, so that it tells what the model can do at all; or, as short, that of another
question, so that it tells what is found by chance."""


@dataclass(frozen=True)
class Place:
    """Of a prompt in the grid.

    Args:
        length: in tokens.
        depth: share of the context before what is asked for; None where chance decides.
        index: number of the trial.
        context: which one it has.
    """

    length: int
    depth: float | None
    index: int
    context: Context = "whole"


@dataclass(frozen=True)
class Grid:
    """Prompts of all lengths and depths.

    Args:
        lengths: in tokens, ascending.
        depths: shares of the context before what is asked for, ascending; (None,) where chance decides.
        trials: prompts for each length and depth.
        control: a length that has hardly more than what is needed: the same questions there, and once more with the context of others.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...] | tuple[None]
    trials: int
    control: int | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], depths: float | Sequence[float] | None, trials: int) -> Grid:
        """The grid that was asked for; one number of depths above 1 is how many, in equal steps from 0 to 1.

        Raises:
            ValueError: no length, no trial, or a depth outside 0 ... 1.
        """
        if not lengths:
            raise ValueError("lengths must name at least one length in tokens")
        if trials < 1:
            raise ValueError(f"trials must be at least 1, got {trials}")
        return cls(tuple(sorted(set(lengths))), (None,) if depths is None else depth_values(depths), trials)

    def __iter__(self) -> Iterator[Place]:
        """Short prompts first, those of the controls before all."""
        controls: list[tuple[int, Context]] = [] if self.control is None else [(self.control, "short"), (self.control, "other")]
        for length, context in [*controls, *((length, "whole") for length in self.lengths)]:
            yield from (Place(length, depth, index, context) for depth, index in self.trial_places())

    def trial_places(self) -> Iterator[tuple[float | None, int]]:
        """Depth and number of each prompt of one length."""
        return product(self.depths, range(self.trials))

    @property
    def tokens(self) -> int:
        """Of all prompts together."""
        return sum(place.length for place in self)

    def fitted(self, prompts: Prompts, controls: bool = False) -> Grid:
        """The grid for the prompts of a task: without depths where it has none, with the length of the controls.

        Raises:
            ValueError: a length leaves no room for the words around the context; it says the shortest that does.
        """
        grid = self if prompts.task.by_depth else replace(self, depths=(None,))
        shortest = max(prompts.shortest(self.lengths[0], *each) for each in grid.trial_places())
        if self.lengths[0] < shortest:
            short = f"a length of {self.lengths[0]:,} tokens is too short"
            raise ValueError(f"{prompts.task.name}: {short}: the words around the filler need {shortest:,}")
        return replace(grid, control=grid.least(prompts)) if controls else grid

    def least(self, prompts: Prompts) -> int:
        """The shortest length at which all questions can be asked, with their own context or that of another."""
        return max(prompts.shortest(0, *each, other) for each in self.trial_places() for other in (False, True))


def depth_values(depths: float | Sequence[float]) -> tuple[float, ...]:
    """Ascending values from one number of steps, or the values themselves."""
    given = [depths] if isinstance(depths, (int, float)) else [*depths]
    if len(given) == 1 and given[0] > 1 and given[0] == int(given[0]):
        steps = int(given[0])
        return tuple(step / (steps - 1) for step in range(steps))
    if not given or not all(0 <= depth <= 1 for depth in given):
        raise ValueError(f"depths must be values from 0 to 1, or one whole number of steps of at least 2, got {given}")
    return tuple(sorted({float(depth) for depth in given}))
