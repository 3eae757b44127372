from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import Part, register
from .rnope_swa import RNoPESWA


@register("swan")
class SWAN(RNoPESWA):
    """SWAN: RoPE in a sliding window, and layers without, whose scores grow with the text (Puvvada et al., 2025, arXiv:2504.08719).

    Args:
        sliding_window: tokens that a query sees in the layers with RoPE.
        interval: n: layers n - 1, 2 n - 1 ... have no positions.
        base: the encoding of the others: a name, or {"name": ...} with its options.
        temperature: of the layers without positions, as any encoding takes one; None for none, as in training.

    Needs training; a trained model is converted. Differs from the paper: it fits the logarithm by which scores grow to each model, here it
    is `log_n`. No code of the authors was there to compare with.
    """

    def __init__(
        self,
        *,
        sliding_window: int = 512,
        interval: int = 4,
        base: str | Mapping[str, Any] = "rope",
        temperature: str | Mapping[str, Any] | None = "log_n",
    ):
        super().__init__(sliding_window=sliding_window, interval=interval, base=base)
        self.temperature = temperature

    def every(self) -> Part:
        return super().every() if self.temperature is None else {**super().every(), "temperature": self.temperature}
