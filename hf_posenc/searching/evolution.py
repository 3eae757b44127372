"""Selection, mutation and crossover, as LongRoPE has them (arXiv:2402.13753, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from .space import Space, Vector

POPULATION, ITERATIONS = 16, 160
"""About as many vectors as in the papers (64 and 40), in more generations: that gets further, the more so where there is time for few."""
TRIES = 20
"""At a vector that was not measured before."""


@dataclass
class Evolution:
    """One search. What it does follows from the seeds, the scores and the chance, and from nothing else.

    Args:
        space: where vectors may lie.
        measure: the score of a vector: the less the better.
        chance: decides.
        population: how many are measured before the first are chosen. Half as many, the best of all so far, are the parents of an
            iteration, and have half as many children: one half by mutation, the other by crossover.
        scores: of all that was measured, in this order.
    """

    space: Space
    measure: Callable[[Vector], float]
    chance: Random
    population: int = POPULATION
    scores: dict[Vector, float] = field(default_factory=dict)

    def run(self, seeds: Sequence[Vector], iterations: int) -> None:
        """Measure the seeds, mutations of them, and the children of so many generations."""
        for vector in seeds:
            self.add(vector)
        for _ in range(self.population - len(seeds)):
            self.bear(seeds)
        quarter = max(1, self.population // 4)
        for _ in range(iterations):
            parents = self.best(2 * quarter)
            for number in range(2 * quarter):
                self.bear(parents, cross=number >= quarter)

    def bear(self, parents: Sequence[Vector], cross: bool = False) -> None:
        """Measure a new vector, if one is found."""
        for _ in range(TRIES):
            if (vector := self.child(parents, cross)) not in self.scores:
                return self.add(vector)

    def child(self, parents: Sequence[Vector], cross: bool) -> Vector:
        """Of one of the parents, or of two, mostly as the better one."""
        if not cross or len(parents) < 2:
            return self.space.mutated(self.chance.choice(parents), self.chance)
        better, other = sorted(self.chance.sample(range(len(parents)), 2))
        return self.space.crossed(parents[better], parents[other], self.chance)

    def add(self, vector: Vector) -> None:
        """Measure a vector."""
        if vector not in self.scores:
            self.scores[vector] = self.measure(vector)

    def best(self, number: int) -> list[Vector]:
        """Those with the lowest scores, the best first."""
        return sorted(self.scores, key=self.scores.__getitem__)[:number]
