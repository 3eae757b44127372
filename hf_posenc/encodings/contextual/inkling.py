from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Block, Geometry, PositionalEncoding, precise, register
from ..options import LONGEST_TABLE, count
from .shaw import at_distance

INIT_STD = 0.02


@register("inkling")
class InklingRelative(PositionalEncoding):
    """Relative logits of Inkling (Thinking Machines, 2026; transformers' `InklingRelativeLogits`).

    score(i, j) = q_i k_j / sqrt(D) + (R_h x_i) . c[i - j] for i - j < L, and nothing beyond: each token mixes curves over the distance,
    which the heads of a layer share, from what the layer's attention is given.

    Args:
        curves: how many.
        extent: L in tokens.

    Needs training. Differs from Inkling: its temperature for long texts is not part of this (`temperature=` is); the curves start at zero.
    """

    relative = True
    per_layer = True
    caches_state = False
    starts_as = "nope"
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, curves: int = 16, extent: int = 1024):
        super().__init__(geometry)
        curves, extent = count("curves", curves, at_most=LONGEST_TABLE), count("extent", extent, at_most=LONGEST_TABLE)
        self.mixing = nn.Parameter(torch.randn(geometry.num_heads * curves, geometry.hidden_size) * INIT_STD)
        self.curves = nn.Parameter(torch.zeros(curves, extent))

    def state(self, x: Tensor, pos: Tensor) -> Tensor:
        shares = F.linear(precise(x, x), precise(self.mixing, x))
        return shares.unflatten(-1, (self.geometry.num_heads, -1)).transpose(1, 2)

    def mix(self, scores: Tensor, block: Block) -> Tensor:
        by_distance = cast(Tensor, block.q_state).to(scores) @ self.curves.to(scores)
        return scores + at_distance(F.pad(by_distance, (0, 1)), block.q_pos, block.k_pos)
