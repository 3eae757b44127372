"""Effective length: how far a score holds, with what chance left open."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

DRAWS = 1000
Scores = Mapping[int, Sequence[float]]
"""length -> the score of each prompt."""
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Threshold:
    """What a score must not fall below.

    Args:
        share: of the score at the shortest length (NoLiMa: 0.85).
        absolute: it is the score itself (RULER: 0.856).
    """

    share: float = 0.85
    absolute: bool = False

    def length(self, means: Mapping[int, float]) -> int:
        """The longest length up to which no mean is below; 0 where there is none, or nothing is found at the shortest."""
        first = means[min(means)]
        bar = self.share if self.absolute else self.share * first
        reached = 0
        for length in sorted(means):
            if first <= 0 or means[length] < bar:
                break
            reached = length
        return reached


def means(tasks: Sequence[Scores]) -> dict[int, float]:
    """length -> the mean over tasks of the mean over their prompts; lengths that all of them have."""
    shared = set.intersection(*({*scores} for scores in tasks))
    return {length: sum(mean(scores[length]) for scores in tasks) / len(tasks) for length in sorted(shared)}


def mean(values: Sequence[float]) -> float:
    """Of numbers."""
    return sum(values) / len(values)


def interval(tasks: Sequence[Scores], number: Callable[[dict[int, float]], Number], seed: int = 0) -> tuple[Number, Number]:
    """Of a number that follows from the means, 95 %: the bootstrap, which draws prompts of each task and length anew.

    Args:
        tasks: the scores of each task.
        number: of the means.
        seed: of the draws.
    """
    chance = random.Random(seed)
    drawn = [
        number(means([{length: chance.choices(values, k=len(values)) for length, values in scores.items()} for scores in tasks]))
        for _ in range(DRAWS)
    ]
    drawn.sort()
    return drawn[round(0.025 * (DRAWS - 1))], drawn[round(0.975 * (DRAWS - 1))]
