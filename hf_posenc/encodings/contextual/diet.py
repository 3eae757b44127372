from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Block, Geometry, precise, register
from ..input.limited import Limited
from ..options import LONGEST_TABLE, count, one_of
from ..widths import own_columns, shared_columns

STARTS = ("normal", "zero")
INIT_STD = 0.02


@register("diet_abs")
class DIETAbsolute(Limited):
    """Decoupled absolute positional attention (Chen et al., 2021, arXiv:2104.08698, eq. 1; DIET-ABS).

    score(i, j) = q_i k_j / sqrt(D) + p_h[i] r_h[j], with two learned vectors a position for each head, shared by the layers: further
    columns of queries and keys.

    Args:
        max_positions: vectors; default the native context. A position beyond is an error.
        rank: width of the vectors; default D.
        init: "normal" (N(0, 0.02)), or "zero": p is 0 at first.

    Needs training. Differs from the paper: no term for segments, of which a decoder's text is one.
    """

    adds_columns = True
    needs_training = "pretraining or fine-tuning"
    beyond = "the learned vectors of"

    def __init__(self, geometry: Geometry, *, max_positions: int | None = None, rank: int | None = None, init: str = "normal"):
        super().__init__(geometry, max_positions)
        shape = geometry.num_heads, self.rows, geometry.head_dim if rank is None else count("rank", rank, at_most=LONGEST_TABLE)
        self.query_table, self.key_table = (nn.Parameter(torch.randn(shape) * INIT_STD) for _ in range(2))
        if one_of("init", init, STARTS) == "zero":
            self.starts_as = "nope"
            nn.init.zeros_(self.query_table)

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        q, k, groups = block.q, block.k, block.k.shape[1]
        left, right = (self._rows(table, pos, q) for table, pos in ((self.query_table, block.q_pos), (self.key_table, block.k_pos)))
        left, right = own_columns(left / block.scaling, groups).to(q), shared_columns(right, groups).to(k)
        return torch.cat((q, left.expand(len(q), -1, -1, -1)), -1), torch.cat((k, right.expand(len(k), -1, -1, -1)), -1)

    def _rows(self, table: Tensor, pos: Tensor, like: Tensor) -> Tensor:
        """Vectors of tokens at `pos` [B,T]: [B,H,T,rank]. What nobody sees, such as the free places of a static cache, may lie anywhere."""
        return precise(table, like)[:, pos.clamp(0, self.rows - 1)].transpose(0, 1)
