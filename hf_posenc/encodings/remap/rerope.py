from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Geometry, PositionalEncoding, Region, count, register
from ..rotary.rope import RoPE


@register("rerope")
class ReRoPE(PositionalEncoding):
    """Rectified RoPE (Su, 2023, kexue.fm/archives/9708 and the author's rerope repository).

    Distances are capped at a window w: within it the model's own RoPE, beyond it every key looks w tokens away. The
    model never meets a distance it was not trained on, so it reads any length without training. Queries past the native
    context L are sharpened by max(1, ln(i + 1) / ln L).

    Args:
        window: w in tokens; default 512, or half the native context where that is less.
        log_scaling: sharpen late queries as the author does.

    Works without training.
    """

    rotary = True
    caches = "raw"

    def __init__(self, geometry: Geometry, *, window: int | None = None, log_scaling: bool = True):
        super().__init__(geometry)
        self.window = max(1, min(512, geometry.max_positions // 2)) if window is None else count("window", window)
        self.log_scaling = log_scaling
        self.base = RoPE(geometry)

    def reset_buffers(self) -> None:
        self.base.reset_buffers()

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        return [
            Region(self._near, contains=lambda q, k: q - k < self.window),
            Region(self._far, contains=lambda q, k: q - k >= self.window),
        ]

    def _near(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self.base.rotate(q, k, q_pos, k_pos)
        return self._sharpen(q, q_pos), k

    def _far(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self.base.rotate(q, k, torch.full_like(q_pos, self.window), torch.zeros_like(k_pos))
        return self._sharpen(q, q_pos), k

    def _sharpen(self, q: Tensor, q_pos: Tensor) -> Tensor:
        if not self.log_scaling:
            return q
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        logs = torch.log(q_pos.to(wide) + 1) / math.log(self.geometry.max_positions)
        return q * logs.clamp(min=1)[:, None, :, None].to(q.dtype)
