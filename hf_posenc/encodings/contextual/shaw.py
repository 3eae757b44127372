from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..base import Block, Geometry, PositionalEncoding, precise, register
from ..options import LONGEST_TABLE, count, flag, one_of

STARTS = ("xavier", "zero")


class RelativeKeys(PositionalEncoding):
    """A vector a distance meets the query, the last of them for all greater distances too: `table` [K+1,D]."""

    table: Tensor
    relative = True
    needs_training = "pretraining or fine-tuning"

    def context_bias(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, scaling: float) -> Tensor:
        by_distance = precise(q, q) @ precise(self.table, q).T * scaling
        return at_distance(by_distance, q_pos, k_pos)


class RelativeVectors(RelativeKeys):
    """Another is added to the value of the key: `value_table` [K+1,V]."""

    value_table: Tensor | None

    def attended(self, weights: Tensor, block: Block) -> Tensor:
        table = cast(Tensor, self.value_table)
        distance = distances(block.q_pos, block.k_pos, len(table)).expand_as(weights)
        by_distance = weights.new_zeros(*weights.shape[:3], len(table)).scatter_add(-1, distance, weights)
        return by_distance @ table.to(weights)


@register("shaw")
class Shaw(RelativeVectors):
    """Relative position representations (Shaw et al., 2018, arXiv:1803.02155, eq. 3 and 4).

    score(i, j) = q_i (k_j + a[min(i - j, K)]) / sqrt(D), and token i attends to the values v_j + b[min(i - j, K)]: two learned vectors a
    distance, shared by the heads of a layer.

    Args:
        max_distance: K in tokens; all greater distances share the last vectors.
        values: whether there are vectors b for the values.
        init: "xavier" uniform vectors, or "zero".

    Needs training. Differs from the paper: no vectors for keys after the query, which a decoder does not see.
    """

    per_layer = True

    def __init__(self, geometry: Geometry, *, max_distance: int = 16, values: bool = True, init: str = "xavier"):
        super().__init__(geometry)
        rows = 1 + count("max_distance", max_distance, at_most=LONGEST_TABLE)
        self.table = nn.Parameter(torch.zeros(rows, geometry.head_dim))
        self.value_table = nn.Parameter(torch.zeros(rows, geometry.value_dim)) if flag("values", values) else None
        if not values:
            self.__class__ = KeysAlone
        if one_of("init", init, STARTS) == "zero":
            self.starts_as = "nope"
        else:
            for table in self.parameters():
                nn.init.xavier_uniform_(table)


class KeysAlone(Shaw):
    """Without vectors for the values: what adds to the scores alone, which families can have too that weigh their values themselves."""

    attended = PositionalEncoding.attended  # type: ignore[assignment]


def distances(q_pos: Tensor, k_pos: Tensor, length: int) -> Tensor:
    """From queries at `q_pos` [B,Q] to keys at `k_pos` [B,K]: [B,1,Q,K], those beyond either end as 0 or length - 1."""
    return (q_pos[:, :, None] - k_pos[:, None, :]).clamp(0, length - 1)[:, None]


def at_distance(by_distance: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """Of numbers [B,H,Q,L] for the distances 0 .. L - 1, those of queries at `q_pos` [B,Q] and keys at `k_pos` [B,K]: [B,H,Q,K].

    A distance beyond either end takes the number at that end.
    """
    return looked_up(by_distance, distances(q_pos, k_pos, by_distance.shape[-1])[:, 0])


def looked_up(numbers: Tensor, index: Tensor) -> Tensor:
    """Of numbers [B,H,T,L], those at `index` [1 or B,T,N] of each row, the same for all heads: [B,H,T,N]."""
    return numbers.gather(-1, index[:, None].expand(*numbers.shape[:3], -1))
