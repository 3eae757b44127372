from __future__ import annotations

from ..base import Geometry, register
from ..options import FARTHEST, positive
from .rerope import ReRoPE


@register("leaky_rerope")
class LeakyReRoPE(ReRoPE):
    """Leaky ReRoPE (Su, 2023, kexue.fm/archives/9708 and the author's rerope repository).

    A key d >= w tokens back looks w + (d - w) / k tokens away: within the window w the model's own RoPE, beyond it distances
    that go on growing, slowly. They stay within the native context L up to w + k (L - w) tokens. Queries past L are
    sharpened by max(1, ln(i + 1) / ln L).

    Args:
        window: w in tokens; default 512, or half the native context where that is less.
        leak: k, at least 1.
        log_scaling: sharpen late queries as the author does.

    Works without training.
    """

    def __init__(self, geometry: Geometry, *, window: int | None = None, leak: float = 16.0, log_scaling: bool = True):
        super().__init__(geometry, window=window, log_scaling=log_scaling)
        self.leak = positive("leak", leak, at_least=1.0, at_most=FARTHEST)
