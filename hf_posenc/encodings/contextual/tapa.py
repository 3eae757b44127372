from __future__ import annotations

import math

from torch import Tensor

from ..base import Block, Geometry, PositionalEncoding, precise, products, register
from ..options import number


@register("tapa")
class TAPA(PositionalEncoding):
    """Token-aware phase attention (Wang et al., 2025, arXiv:2509.12635, eq. 5).

    score(i, j) = q_A k_A / sqrt(s D) cos(2 pi (i - j)^alpha q_P k_P / sqrt((1 - s) D)): the first s D dimensions of a head make the size
    of a score, the others its phase, which grows with the distance.

    Args:
        share: s.
        alpha: power of the distance.

    Needs training. (No code of the authors is public.)
    """

    relative = True
    needs_training = "fine-tuning"

    def __init__(self, geometry: Geometry, *, share: float = 0.5, alpha: float = 0.1):
        super().__init__(geometry)
        self.share, self.alpha = number("share", share, 0.0, 1.0), number("alpha", alpha, 0.0, 4.0)
        self.width = round(geometry.head_dim * self.share)
        if not 0 < self.width < geometry.head_dim or self.alpha == 0:
            raise ValueError(f"share = {share!r} of {geometry.head_dim} dimensions must leave some on both sides, and alpha must not be 0")

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        q, k = block.q[..., : self.width], block.k[..., : self.width]
        return q * (self.geometry.head_dim / self.width) ** 0.5, k

    def mix(self, scores: Tensor, block: Block) -> Tensor:
        rest = slice(self.width, None)
        q, k = (precise(x[..., rest], block.q) for x in (block.q, block.k))
        factor = block.scaling * (self.geometry.head_dim / (self.geometry.head_dim - self.width)) ** 0.5
        distance = precise((block.q_pos[:, :, None] - block.k_pos[:, None]).clamp(min=0), block.q)
        return scores * (2 * math.pi * distance[:, None] ** self.alpha * products(q, k) * factor).cos()
