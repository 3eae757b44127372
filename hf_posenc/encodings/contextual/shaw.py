from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import LONGEST_TABLE, count, one_of

STARTS = ("xavier", "zero")


@register("shaw")
class Shaw(PositionalEncoding):
    """Relative position representations (Shaw et al., 2018, arXiv:1803.02155, eq. 4).

    score(i, j) = q_i (k_j + a[min(i - j, K)]) / sqrt(D), one learned vector a distance, shared by the heads of a layer.

    Args:
        max_distance: K in tokens; all greater distances share the last vector.
        init: "xavier" uniform vectors, or "zero".

    Needs training. Differs from the paper: only the keys are changed, not the values (there eq. 3); and no vectors for keys after
    the query, which a decoder does not see.
    """

    relative = True
    per_layer = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, max_distance: int = 16, init: str = "xavier"):
        super().__init__(geometry)
        self.max_distance = count("max_distance", max_distance, at_most=LONGEST_TABLE)
        self.table = nn.Parameter(torch.zeros(self.max_distance + 1, geometry.head_dim))
        if one_of("init", init, STARTS) == "zero":
            self.starts_as = "nope"
        else:
            nn.init.xavier_uniform_(self.table)

    def context_bias(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, scaling: float) -> Tensor:
        by_distance = precise(q, q) @ precise(self.table, q).T * scaling
        return at_distance(by_distance, q_pos, k_pos)


def at_distance(by_distance: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """Of numbers [B,H,Q,L] for the distances 0 .. L - 1, those of queries at `q_pos` [B,Q] and keys at `k_pos` [B,K]: [B,H,Q,K].

    A distance beyond either end takes the number at that end.
    """
    distance = (q_pos[:, :, None] - k_pos[:, None, :]).clamp(0, by_distance.shape[-1] - 1)
    return by_distance.gather(-1, distance[:, None].expand(*by_distance.shape[:3], -1))
