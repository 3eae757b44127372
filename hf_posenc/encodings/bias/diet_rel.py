from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import LONGEST_TABLE, count, one_of
from .alibi import native_slopes

STARTS = ("normal", "zero", "alibi")
INIT_STD = 0.02


@register("diet_rel")
class DIETRelative(PositionalEncoding):
    """Decoupled relative positional attention (Chen et al., 2021, arXiv:2104.08698, eq. 3; DIET-REL).

    score(i, j) = q_i k_j / sqrt(D) + r_h[min(i - j, K)], one learned number a distance for each head of each layer: `t5` without buckets.

    Args:
        max_distance: K in tokens; default the last of the native context.
        init: "normal" (N(0, 0.02)), "zero", or "alibi": ALiBi itself up to K, and constant beyond.

    Needs training. Differs from the paper: no term for segments, of which a decoder's text is one.
    """

    relative = True
    per_layer = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, max_distance: int | None = None, init: str = "normal"):
        super().__init__(geometry)
        last = geometry.max_positions - 1 if max_distance is None else count("max_distance", max_distance, at_most=LONGEST_TABLE)
        self.table = nn.Parameter(torch.randn(geometry.num_heads, last + 1) * INIT_STD)
        if one_of("init", init, STARTS) == "zero":
            self.starts_as = "nope"
            nn.init.zeros_(self.table)
        elif init == "alibi":
            self.table.data = -native_slopes(geometry)[:, None] * torch.arange(last + 1)

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return precise(self.table, q_pos)[h, (q_pos - k_pos).long().clamp(0, self.table.shape[1] - 1)]
