from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..encodings.options import count
from .base import EveryNth, Part, register


@register("rnope_swa")
class RNoPESWA(EveryNth):
    """RoPE in a sliding window, and every fourth layer without positions or window (Yang et al., 2025, arXiv:2501.18795, RNoPE-SWA).

    Args:
        sliding_window: tokens that a query sees in the layers with RoPE; default 4096, that of Cohere's models.
        interval: n: layers n - 1, 2 n - 1 ... have no positions.
        base: the encoding of the others: a name, or {"name": ...} with its options.

    Needs training. transformers' Cohere2 is such a model.
    """

    def __init__(self, *, sliding_window: int = 4096, interval: int = 4, base: str | Mapping[str, Any] = "rope"):
        super().__init__(interval=interval, base=base)
        self.sliding_window = count("sliding_window", sliding_window)

    def between(self) -> Part:
        return {**self.base, "sliding_window": self.sliding_window}
