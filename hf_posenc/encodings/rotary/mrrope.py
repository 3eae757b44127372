from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import one_of
from .rope import power_frequencies
from .yarn import YaRN

STRATEGIES = ("pro", "uni")


@register("mrrope")
class MrRoPE(YaRN):
    """Mixed-radix RoPE (Tian et al., 2026, arXiv:2601.22181, eq. 10 and 16; mattian7/mrRoPE).

    f_k -> f_k / (lambda_0 ... lambda_(k-1)), with lambda = 1 but for the n pairs between those that turn `beta_fast` and `beta_slow` times
    within the native context L. There all are s^(1/n) ("uni"), or they grow, the m-th being s^(2m / (n (n + 1))) ("pro"). The
    temperature is YaRN's. Not the rotation on several axes that is called M-RoPE.

    Args:
        factor: s, target context over native context.
        target_length: target context in tokens, instead of `factor`.
        strategy: "pro" or "uni".
        beta_fast: turns within L above which a pair is left alone.
        beta_slow: turns within L below which a pair is fully interpolated.
        truncate: round both ends outwards to whole pairs, as the authors' code does.
        attention_factor: factor on cos and sin; default 0.1 ln s + 1.

    Works without training.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        factor: float | None = None,
        target_length: int | None = None,
        strategy: str = "pro",
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        truncate: bool = True,
        attention_factor: float | None = None,
    ):
        parts: dict[str, Any] = {"beta_fast": beta_fast, "beta_slow": beta_slow, "truncate": truncate, "attention_factor": attention_factor}
        super().__init__(geometry, factor=factor, target_length=target_length, **parts)
        self.strategy = one_of("strategy", strategy, STRATEGIES)

    def inverse_frequencies(self) -> Tensor:
        low, high = self.ramp_ends()
        n = high - low or 0.001
        passed = (torch.arange(self.dim // 2, dtype=torch.float32) - low).clamp(0, n)
        share = passed / n if self.strategy == "uni" else passed * (passed + 1) / (n * (n + 1))
        return power_frequencies(self.theta, self.dim) / self.factor**share

    def rope_parameters(self):
        return None
