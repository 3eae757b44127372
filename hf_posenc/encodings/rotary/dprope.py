from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import count
from .rope import power_frequencies
from .scaling import ScaledRoPE

TINY = 2.0**-14
"""Added to each count, so that no distribution has a zero: the smallest normal number of float16, as in the authors' code."""
AT_ONCE = 1 << 22
"""Positions that are counted at once."""


@register("dprope")
class DPRoPE(ScaledRoPE):
    """Rotary angles distributed as in training (Wu et al., 2024, EMNLP 2024, main.414, section 3; 1180301012/DPRoPE).

    Each pair is interpolated, f_k / s, or left alone, whichever disturbs the distribution P of its angles less: that with the smaller
    KL(P over L tokens | P over s L tokens), counted in equal intervals of the circle, L the native context.

    Args:
        factor: s, target context over native context.
        target_length: target context in tokens, instead of `factor`.
        intervals: of the circle.

    Works without training; the paper tunes at the target length. Differs from the authors' code: angles are counted in float64.
    """

    def __init__(self, geometry: Geometry, *, factor: float | None = None, target_length: int | None = None, intervals: int = 360):
        super().__init__(geometry, factor=factor, target_length=target_length)
        self.intervals = count("intervals", intervals, at_most=1 << 16)

    def inverse_frequencies(self) -> Tensor:
        plain = power_frequencies(self.theta, self.dim)
        with torch.device("cpu"):
            left = left_alone(self.theta, self.dim, self.geometry.max_positions, self.factor, self.context_length, self.intervals)
        return torch.where(torch.tensor(left, device=plain.device), plain, plain / self.factor)


@lru_cache
def left_alone(theta: float, dim: int, native: int, factor: float, target: int, intervals: int) -> tuple[bool, ...]:
    """Whether extrapolation of a pair disturbs its angles no more than interpolation; counted once for each such set of numbers."""
    found = []
    for frequency in (theta ** (-2 * k / dim) for k in range(dim // 2)):
        trained, longer, interpolated = (
            distribution(tokens, f, intervals) for tokens, f in ((native, frequency), (target, frequency), (target, frequency / factor))
        )
        beyond, between = ((trained * np.log(trained / other)).sum() for other in (longer, interpolated))
        found.append(bool(beyond <= between))
    return tuple(found)


def distribution(tokens: int, frequency: float, intervals: int) -> np.ndarray:
    """Of the angles of `tokens` positions over equal intervals of the circle: [intervals] float64."""
    counts = np.full(intervals, TINY)
    for start in range(0, tokens, AT_ONCE):
        turns = np.arange(start, min(start + AT_ONCE, tokens)) * (frequency / (2 * np.pi))
        index = ((turns - np.floor(turns)) * intervals).astype(np.int64)
        counts += np.bincount(index.clip(max=intervals - 1), minlength=intervals)
    return counts / tokens
