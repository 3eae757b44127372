from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Geometry, Region, register
from ..options import count, flag
from .base import RemappedRoPE, own, windowed


@register("rerope")
class ReRoPE(RemappedRoPE):
    """Rectified RoPE (Su, 2023, kexue.fm/archives/9708 and the author's rerope repository).

    Distances are capped at a window w: within it the model's own RoPE, beyond it every key looks w tokens away. The
    model never meets a distance it was not trained on, so it reads any length without training. Queries past the native
    context L are sharpened by max(1, ln(i + 1) / ln L). Without that, these are also the positions of InfLLM (Xiao et al., 2024,
    arXiv:2402.04617), which besides attends to far blocks only as it retrieves them.

    Args:
        window: w in tokens; default 512, or half the native context where that is less.
        log_scaling: sharpen late queries as the author does.

    Works without training.
    """

    leak = math.inf
    """Tokens that add one to the distance beyond the window."""

    def __init__(self, geometry: Geometry, *, window: int | None = None, log_scaling: bool = True):
        super().__init__(geometry)
        self.window = max(1, min(512, geometry.max_positions // 2)) if window is None else count("window", window)
        self.log_scaling = flag("log_scaling", log_scaling)

    def stored(self, pos: Tensor) -> Tensor:
        return pos / self.leak

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        far = self.turn(lambda i: (i - self.window) / self.leak + self.window)
        return windowed(self.window, near=self.turn(own, own), far=far)

    def cached_key(self, k: Tensor, pos: Tensor) -> Tensor:
        at_zero = math.isinf(self.leak) and self.base.attention_factor == 1
        return k if at_zero else super().cached_key(k, pos)

    def sharpening(self, pos: Tensor) -> Tensor | None:
        return (torch.log(pos + 1) / math.log(self.geometry.max_positions)).clamp(min=1) if self.log_scaling else None
