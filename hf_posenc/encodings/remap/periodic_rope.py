from __future__ import annotations

from torch import Tensor

from ..base import Geometry, Region, register
from ..options import count
from .base import RemappedRoPE


@register("periodic_rope")
class PeriodicRoPE(RemappedRoPE):
    """Periodic RoPE, P-RoPE in a sliding window (Huo, 2026, arXiv:2605.27980, and the author's code).

    A query sees the last W tokens, itself among them, and token t is turned to t mod W: no text is longer than the positions that were
    trained. Key j looks (i mod W) - (j mod W) tokens away, which is i - j within a period, and i - j - W for a key of the one before. The
    paper has it beside layers without positions (`miniwin`).

    Args:
        window: W in tokens; default 512, or half the native context where that is less.

    Needs training. Not `p_rope`, which is another one's.
    """

    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, window: int | None = None):
        super().__init__(geometry)
        self.window = max(1, min(512, geometry.max_positions // 2)) if window is None else count("window", window)

    def stored(self, pos: Tensor) -> Tensor:
        return pos % self.window

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        return [Region(self.turn(self.stored), keys=lambda q: (q - self.window + 1, q + 1))]
