from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import Geometry, PositionalEncoding, at_hand, register
from ..options import count, positive
from .by_length import RoPEByLength
from .rope import RoPE, exponents


@register("longrope")
class LongRoPE(RoPEByLength):
    """LongRoPE (Ding et al., 2024, arXiv:2402.13753, eq. 2 and section 3).

    f_k = 1 / (lambda_k theta^(2k/r)) with one searched factor lambda_k a pair: `short_factor` while the text is within the
    native context L, `long_factor` beyond; cos and sin times sqrt(1 + ln s / ln L).

    A model that ships with LongRoPE (Phi-3, Phi-4-mini) keeps its own factors: `patch(model, "longrope")` makes its
    decoding equal to its evaluation. With `short_factor` equal to `long_factor` (`hf_posenc.search`) it is one table of frequencies for
    all lengths, which stock transformers computes too.

    Args:
        factor: s, target context over native context.
        target_length: target context in tokens, instead of `factor`.
        short_factor: lambda for texts within L, r/2 numbers; default all 1.
        long_factor: lambda beyond L, r/2 numbers from the paper's search; default s^(2k / (r - 2)), the NTK-aware start of it.
        attention_factor: factor on cos and sin; default sqrt(1 + ln s / ln L).
        original_length: L in tokens; default the native context.

    Works without training at small factors. Differs from the paper: no unscaled initial tokens, as in all released models.
    """

    long_freq: Tensor

    def __init__(
        self,
        geometry: Geometry,
        *,
        factor: float | None = None,
        target_length: int | None = None,
        short_factor: Sequence[float] | None = None,
        long_factor: Sequence[float] | None = None,
        attention_factor: float | None = None,
        original_length: int | None = None,
    ):
        native = dict(geometry.rope_parameters) if geometry.rope_type == "longrope" else {}
        self.composes = bool(native)
        self.length = native.get("original_max_position_embeddings") or geometry.max_positions
        if original_length is not None:
            self.length = count("original_length", original_length, 2)
        if native and factor is None and target_length is None:
            factor = native.get("factor") or geometry.max_positions / self.length
        if native:
            _refuse_other_factors(native, short_factor, long_factor)
        super().__init__(geometry, factor=factor, target_length=target_length)
        n = self.dim // 2
        self.short = _factors("short_factor", _first(native.get("short_factor"), short_factor, [1.0] * n), n)
        self.long = _factors("long_factor", _first(native.get("long_factor"), long_factor, self.first_factors()), n)
        default = math.sqrt(1 + math.log(self.factor) / math.log(self.length))
        self.attention_factor = positive("attention_factor", _first(attention_factor, native.get("attention_factor"), default))
        if type(self) is LongRoPE and self.short == self.long:
            self.__class__ = OneTable

    def first_factors(self) -> list[float]:
        """lambda beyond L, where no search has found another."""
        return [self.factor ** (2 * k / max(self.dim - 2, 1)) for k in range(self.dim // 2)]

    @property
    def native_length(self) -> int:
        return self.length

    def inverse_frequencies(self) -> Tensor:
        return self._divided(self.short)

    def reset_buffers(self) -> None:
        super().reset_buffers()
        self.set_buffer("long_freq", self._divided(self.long))

    def _divided(self, factors: list[float]) -> Tensor:
        return 1.0 / (torch.tensor(factors, dtype=torch.float32) * self.theta ** exponents(self.dim))

    def frequencies_for(self, pos: Tensor) -> Tensor:
        short, long = self.inv_freq.to(pos.device), self.long_freq.to(pos.device)
        return torch.where(pos[..., None] < self.length, short, long)

    def changes(self, first: int, last: int) -> Iterable[int]:
        return [self.length] if first < self.length <= last else []

    def starts(self, q_pos: Tensor) -> list[int]:
        return super().starts(q_pos) if at_hand(q_pos) else [-sys.maxsize, self.length]


class OneTable(LongRoPE):
    """LongRoPE with the same factors at all lengths."""

    caches = "transformed"
    relative = True
    regions = PositionalEncoding.regions
    rotate = RoPE.rotate
    frequencies = RoPE.frequencies

    def rope_parameters(self):
        return {
            "rope_type": self.name,
            "rope_theta": self.theta,
            "factor": self.factor,
            "original_max_position_embeddings": self.length,
            "short_factor": self.short,
            "long_factor": self.long,
            "attention_factor": self.attention_factor,
        }


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _factors(name: str, values: Sequence[float], n: int) -> list[float]:
    if not isinstance(values, Sequence) or len(values) != n:
        raise ValueError(f"{name} needs one number a rotated pair, {n} in this model, got {values!r}")
    return [positive(name, v) for v in values]


def _refuse_other_factors(native: dict, short, long) -> None:
    for name, given in (("short_factor", short), ("long_factor", long)):
        if given is not None and list(given) != list(native[name]):
            raise ValueError(f"this model ships with its own LongRoPE {name}; it cannot be overwritten by a patch")
