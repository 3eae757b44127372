"""What is searched: a factor for each rotated pair that its period is multiplied by, and the factor on cos and sin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from ..encodings import Geometry, create
from ..encodings.rotary.longrope import LongRoPE
from ..encodings.rotary.longrope2 import critical_pair
from ..encodings.rotary.rope import RoPE
from ..exporting.schemes import factors_of

Method = Literal["longrope", "longrope2"]
METHODS: tuple[Method, ...] = ("longrope", "longrope2")
SEEDS = ("yarn", "ntk", "longrope2", "linear")
"""Encodings that the first vectors are those of; what is known to work best comes first."""
STEP = 0.01
"""Between values that are tried (LongRoPE, table 4)."""
CHANGED = 0.3
"""Share of the numbers of a vector that change in a mutation or a crossover."""
HOTTEST = 0.2
"""The factor on cos and sin goes from 1 to 1 + this x ln s: YaRN's is in the middle."""


@dataclass(frozen=True)
class Vector:
    """One way to stretch a rotation.

    Args:
        factors: of the pairs, the fastest first; none is below that before it.
        attention_factor: on cos and sin.
        critical: pairs before this one follow from its factor; those from it on are free.
    """

    factors: tuple[float, ...]
    attention_factor: float
    critical: int = 0

    def options(self, length: int) -> dict[str, Any]:
        """Those of `longrope`, of one table for texts of any length."""
        factors = list(self.factors)
        return {"target_length": length, "short_factor": factors, "long_factor": factors, "attention_factor": self.attention_factor}


@dataclass(frozen=True)
class Space:
    """Where vectors may lie.

    LongRoPE (arXiv:2402.13753, section 3.2): all factors are free between 1 and 1.25 s, and none is below that of the pair before.
    LongRoPE2 (arXiv:2502.20082, algorithm 1): those from a critical pair c on are free between s and 2 s, and those below are
    lambda_c^(k/c), the NTK-aware ones; c is the first pair that does not come round within the native context, or an earlier one.

    Args:
        geometry: of the model.
        length: to reach, in tokens.
        method: whose space it is.
    """

    geometry: Geometry
    length: int
    method: Method = "longrope"

    @property
    def stretch(self) -> float:
        """s."""
        return self.length / self.geometry.max_positions

    @property
    def bounds(self) -> tuple[float, float]:
        """Of the free factors."""
        return (1.0, 1.25 * self.stretch) if self.method == "longrope" else (self.stretch, 2 * self.stretch)

    @property
    def latest(self) -> int:
        """The critical pair of theory; 0 where all are free."""
        pairs = self.geometry.rotary_dim // 2
        return 0 if self.method == "longrope" else min(critical_pair(self.geometry.max_positions, self.geometry.theta, pairs), pairs - 1)

    def seeds(self) -> dict[str, Vector]:
        """The vectors to begin with, by encoding: for the length, and for one 1.25 times as long, as static schemes reach less far."""
        stretches = {name: self.stretch for name in SEEDS} | {f"{name}:factor={s:g}": s for name in SEEDS if (s := 1.25 * self.stretch)}
        found = {label: self.seed(label.partition(":")[0], s) for label, s in stretches.items()}
        return {label: vector for number, (label, vector) in enumerate(found.items()) if vector not in [*found.values()][:number]}

    def seed(self, name: str, stretch: float) -> Vector:
        """An encoding as a vector; under LongRoPE2, what of it can be kept there."""
        encoding = create(name, self.geometry, factor=stretch)
        assert isinstance(encoding, RoPE)
        factors = encoding.long if isinstance(encoding, LongRoPE) else factors_of(encoding.inv_freq, self.geometry)
        return self.vector(factors[self.latest :], encoding.attention_factor, self.latest)

    def vector(self, free: Sequence[float], attention_factor: float, critical: int) -> Vector:
        """That of the factors of the pairs from the critical one on; what rounding has put out of bounds is put back."""
        low, high = self.bounds
        kept: list[float] = []
        for factor in free:
            kept.append(min(max(factor, kept[-1] if kept else low), high))
        return Vector((*(kept[0] ** (k / critical) for k in range(critical)), *kept), attention_factor, critical)

    def mutated(self, vector: Vector, chance: Random) -> Vector:
        """The vector with other numbers here and there, each between those of its neighbours."""
        critical, (low, high) = vector.critical, self.bounds
        if self.latest and chance.random() < CHANGED:
            critical = chance.randint(1, self.latest)
        free = [*[low] * (vector.critical - critical), *vector.factors[max(critical, vector.critical) :]]
        for k in range(len(free)):
            if chance.random() < CHANGED:
                free[k] = on_grid(free[k - 1] if k else low, free[k + 1] if k + 1 < len(free) else high, chance, free[k])
        attention_factor = vector.attention_factor
        if chance.random() < CHANGED:
            attention_factor = on_grid(1.0, 1.0 + HOTTEST * math.log(self.stretch), chance, attention_factor)
        return self.vector(free, attention_factor, critical)

    def crossed(self, one: Vector, other: Vector, chance: Random) -> Vector:
        """The first with numbers of the second here and there, where they keep the order."""
        factors = [*one.factors]
        for k in range(max(one.critical, other.critical), len(factors)):
            low, high = factors[k - 1] if k > one.critical else self.bounds[0], factors[k + 1] if k + 1 < len(factors) else self.bounds[1]
            if chance.random() < CHANGED and low <= other.factors[k] <= high:
                factors[k] = other.factors[k]
        attention_factor = other.attention_factor if chance.random() < CHANGED else one.attention_factor
        return self.vector(factors[one.critical :], attention_factor, one.critical)


def on_grid(low: float, high: float, chance: Random, otherwise: float) -> float:
    """One of 1, 1.01, 1.02 ... from `low` to `high`; `otherwise` where there is none."""
    first, last = math.ceil(round((low - 1) / STEP, 6)), math.floor(round((high - 1) / STEP, 6))
    return round(1 + chance.randint(first, last) * STEP, 2) if first <= last else otherwise
