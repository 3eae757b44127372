from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import LONGEST_TABLE, count, one_of
from .shaw import STARTS, looked_up


@register("huang")
class Huang(PositionalEncoding):
    """Relative vectors that meet query and key (Huang et al., 2020, arXiv:2009.13658, method 4; "relative_key_query" of BERT).

    score(i, j) = [q_i k_j + q_i a[min(i - j, K)] + k_j a[min(i - j, K)]] / sqrt(D), one learned vector a distance, shared by the heads
    of a layer.

    Args:
        max_distance: K in tokens; all greater distances share the last vector.
        init: "xavier" uniform vectors, or "zero".

    Needs training. Differs from the paper: distances are clipped, and there are no vectors for keys after the query, which a decoder
    does not see.
    """

    relative = True
    per_layer = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, max_distance: int = 64, init: str = "xavier"):
        super().__init__(geometry)
        self.max_distance = count("max_distance", max_distance, at_most=LONGEST_TABLE)
        self.table = nn.Parameter(torch.zeros(self.max_distance + 1, geometry.head_dim))
        if one_of("init", init, STARTS) == "zero":
            self.starts_as = "nope"
        else:
            nn.init.xavier_uniform_(self.table)

    def context_bias(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, scaling: float) -> Tensor:
        table = precise(self.table, q).T * scaling
        distance = (q_pos[:, :, None] - k_pos[:, None, :]).clamp(0, self.max_distance)
        from_query = looked_up(precise(q, q) @ table, distance)
        from_key = looked_up(precise(k, q) @ table, distance.mT).mT
        return from_query + from_key.repeat_interleave(q.shape[1] // k.shape[1], 1)
