from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, precise, register
from .generators import Generated, skew


@register("liere")
class LieRE(Generated):
    """Lie rotational position encodings (Ostmeier et al., 2024, arXiv:2406.10322, section 4; StanfordMIMI/LieRE).

    q_i, k_j -> R(p_i) q_i, R(p_j) k_j with R(p) = exp(sum over the axes a of p_a A_a), where the skew-symmetric A_a are learned: for each
    layer, key-value head and block of b dimensions. They need not commute, so that the score depends on both positions, not on their
    difference alone; it does on text alone, where all axes are alike. Positions come as `position_ids` of [axes, batch, tokens].

    Args:
        axes: their number n.
        block: b, the 8 of LieRE_8; default 8, or less where the rotated width is no multiple of 8.

    Works at once on text; needs fine-tuning for several axes. Differs from the authors' code: A starts as a RoPE whose pairs have one axis
    each, where the entries of theirs are uniform in [0, 2 pi], for positions within [0, 1]; positions are in tokens; heads that share a
    key share A; there is no class token, which theirs does not turn.
    """

    def __init__(self, geometry: Geometry, *, axes: int = 2, block: int | None = None):
        super().__init__(geometry, axes, block)
        blocks, entries = geometry.rotary_dim // self.width, self.width * (self.width - 1) // 2
        self.upper = nn.Parameter(torch.zeros(self.axes, geometry.num_kv_heads, blocks, entries))

    def generators(self, like: Tensor) -> Tensor:
        return precise(self.start, like)[:, None] + skew(precise(self.upper, like), self.width)
