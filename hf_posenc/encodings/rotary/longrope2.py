from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..base import Geometry, register
from ..options import count
from .longrope import LongRoPE


@register("longrope2")
class LongRoPE2(LongRoPE):
    """LongRoPE2 (Shang et al., 2025, arXiv:2502.20082, section 3.2 and algorithm 1).

    LongRoPE whose search begins elsewhere: lambda_k = s for the pairs from the critical one, c, on, and s^(k/c) below, the NTK-aware
    factors for a base under which pair c has exactly s. The frequencies of texts within the native context L stay as they are.

    Args:
        factor: s, target context over native context.
        target_length: target context in tokens, instead of `factor`.
        critical_pair: c; default the first pair that does not come round within L, ceil(r/2 log_theta(L / 2 pi)). The paper's search
            found an earlier one: 25 for 31 in Phi3-mini, 30 for 35 in LLaMA3-8B.
        long_factor: lambda beyond L, r/2 numbers from the paper's search by needles, from s to 2 s above c; default as above.
        attention_factor: factor on cos and sin; default sqrt(1 + ln s / ln L).
        original_length: L in tokens; default the native context.

    Works without training at small factors; the paper trains on 10B tokens, short texts with the frequencies of short ones.
    `hf_posenc.search(..., method="longrope2")` is its search: the authors published no code for it.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        factor: float | None = None,
        target_length: int | None = None,
        critical_pair: int | None = None,
        long_factor: Sequence[float] | None = None,
        attention_factor: float | None = None,
        original_length: int | None = None,
    ):
        most = geometry.rotary_dim // 2
        self.critical = None if critical_pair is None else count("critical_pair", critical_pair, at_most=most)
        searched: dict[str, Any] = {"long_factor": long_factor, "attention_factor": attention_factor, "original_length": original_length}
        super().__init__(geometry, factor=factor, target_length=target_length, **searched)
        if critical_pair is not None and (long_factor is not None or self.composes):
            raise ValueError("critical_pair= makes the factors that long_factor= has, or the model; give one of them")

    def first_factors(self) -> list[float]:
        pairs = self.dim // 2
        c = critical_pair(self.length, self.theta, pairs) if self.critical is None else self.critical
        return [self.factor ** min(k / c, 1.0) for k in range(pairs)]


def critical_pair(length: int, theta: float, pairs: int) -> int:
    """The first pair that does not come round within `length` tokens, or the number of pairs."""
    return min(max(math.ceil(pairs * math.log(length / (2 * math.pi), theta)), 1), pairs)
