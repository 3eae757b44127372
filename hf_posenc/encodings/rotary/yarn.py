from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import flag, positive
from .rope import exponents
from .scaling import ScaledRoPE


def ramp_ends(fast: float, slow: float, length: int, theta: float, dim: int, truncate: bool = True) -> tuple[float, float]:
    """Indices of the pairs that turn `fast` and `slow` times within `length` tokens, rounded outwards or as real numbers."""
    low, high = (dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, dim - 1)


def ramp(low: float, high: float, pairs: int) -> Tensor:
    """0 for pairs up to `low`, 1 from `high` on, and linear in between: [pairs] float32."""
    high = high + 0.001 if low == high else high
    return ((torch.arange(pairs, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)


@register("ntk_by_parts")
class NTKByParts(ScaledRoPE):
    """NTK-by-parts interpolation (Peng et al., 2023, arXiv:2309.00071, definition 1).

    f -> (1 - g) f / s + g f, where g ramps from 0 to 1 over the pairs that turn between `beta_slow` and `beta_fast`
    times within the native context L: slow pairs are interpolated, fast ones left alone.

    Args:
        factor: s, target context over native context.
        target_length: target context in tokens, instead of `factor`.
        beta_fast: turns within L above which a pair is left alone (the paper's beta, 32).
        beta_slow: turns within L below which a pair is fully interpolated (the paper's alpha, 1).
        truncate: round the ends of the ramp outwards to whole pairs, as the authors' code does.

    Works without training; better after about 400 steps at the target length. Not the formula that bloc97 first gave the name
    (2023), which blends in the frequencies of `ntk` too. Differs from the paper: the ramp is linear in the index of the pair,
    as in the authors' code, where the paper's is linear in the number of turns.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        factor: float | None = None,
        target_length: int | None = None,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        truncate: bool = True,
    ):
        super().__init__(geometry, factor=factor, target_length=target_length)
        self.beta_fast, self.beta_slow = positive("beta_fast", beta_fast), positive("beta_slow", beta_slow)
        self.truncate = flag("truncate", truncate)
        if self.beta_fast <= self.beta_slow:
            raise ValueError(f"beta_fast must be above beta_slow, got {beta_fast} and {beta_slow}")

    def ramp_ends(self) -> tuple[float, float]:
        """Indices of the pairs where the ramp begins and ends."""
        return ramp_ends(self.beta_fast, self.beta_slow, self.geometry.max_positions, self.theta, self.dim, self.truncate)

    def kept(self) -> Tensor:
        """g, [r/2] float32."""
        return 1 - ramp(*self.ramp_ends(), self.dim // 2)

    def inverse_frequencies(self) -> Tensor:
        return self.mixed(self.factor, self.kept())

    def mixed(self, factor: float | Tensor, keep: Tensor) -> Tensor:
        """Frequencies for s = `factor` and g = `keep`."""
        periods = self.theta ** exponents(self.dim, keep.device)
        return 1.0 / (factor * periods) * (1 - keep) + 1.0 / periods * keep

    def rope_parameters(self):
        return {
            "rope_type": "yarn",
            "rope_theta": self.theta,
            "factor": self.factor,
            "original_max_position_embeddings": self.geometry.max_positions,
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            "truncate": self.truncate,
            "attention_factor": self.attention_factor,
        }


@register("yarn")
class YaRN(NTKByParts):
    """YaRN (Peng et al., 2023, arXiv:2309.00071, definition 3).

    NTK-by-parts frequencies, and attention logits times (0.1 ln s + 1)^2, here as a factor 0.1 ln s + 1 on cos and sin.

    Args:
        factor: s, target context over native context.
        target_length: target context in tokens, instead of `factor`.
        beta_fast: turns within the native context above which a pair is left alone (the paper's beta, 32).
        beta_slow: turns within the native context below which a pair is fully interpolated (the paper's alpha, 1).
        truncate: round the ends of the ramp outwards to whole pairs, as the authors' code does.
        attention_factor: factor on cos and sin; default 0.1 ln s + 1.

    Works without training at small factors; the paper trains 400 steps at the target length. Differs from the paper: the ramp
    is linear in the index of the pair, as in the authors' code.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        factor: float | None = None,
        target_length: int | None = None,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        truncate: bool = True,
        attention_factor: float | None = None,
    ):
        super().__init__(geometry, factor=factor, target_length=target_length, beta_fast=beta_fast, beta_slow=beta_slow, truncate=truncate)
        default = 0.1 * math.log(self.factor) + 1.0
        self.attention_factor = default if attention_factor is None else positive("attention_factor", attention_factor)
