from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Block, Geometry, precise, register
from ..bias.t5 import T5Bias
from ..input.limited import Limited
from ..options import one_of
from ..widths import own_columns, shared_columns

STARTS = ("normal", "zero")
INIT_STD = 0.02


@register("tupe")
class TUPE(Limited):
    """Untied positional encoding (Ke et al., 2020, arXiv:2006.15595, section 3.1; TUPE-A).

    score(i, j) = [q_i k_j + (p_i U_h) (p_j V_h)] / sqrt(D), with p_t the normalised learned vector of position t, and U and V projections
    of it, all shared by the layers: further columns of queries and keys.

    Args:
        max_positions: vectors p; default the native context. A position beyond is an error.
        init: U is "normal" (N(0, 0.02)), or "zero".

    Needs training. Cost: V_h p_j lies in the cache with each key, for each of the H/G heads that share it, so that keys are 1 + H/G times
    as wide. Differs from the paper: all is divided by sqrt(D), not sqrt(2 D), a temperature; and the first token is like any other, since
    it is no [CLS].
    """

    adds_columns = True
    needs_training = "pretraining or fine-tuning"
    beyond = "the learned vectors of"

    def __init__(self, geometry: Geometry, *, max_positions: int | None = None, init: str = "normal"):
        super().__init__(geometry, max_positions)
        self.table = nn.Parameter(torch.randn(self.rows, geometry.hidden_size) * INIT_STD)
        self.norm = nn.LayerNorm(geometry.hidden_size)
        shape = geometry.hidden_size, geometry.num_heads * geometry.head_dim
        self.u, self.v = (nn.Parameter(torch.randn(shape) * INIT_STD) for _ in range(2))
        if one_of("init", init, STARTS) == "zero":
            self.starts_as = "nope"
            nn.init.zeros_(self.u)

    def cached_key(self, k: Tensor, pos: Tensor) -> Tensor:
        columns = shared_columns(self.projected(pos, self.v, k), k.shape[1]).to(k.dtype)
        return torch.cat((k, columns.expand(len(k), -1, -1, -1)), -1)

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        columns = own_columns(self.projected(block.q_pos, self.u, block.q), block.k.shape[1]).to(block.q.dtype)
        return torch.cat((block.q, columns.expand(len(block.q), -1, -1, -1)), -1), block.k

    def projected(self, pos: Tensor, projection: Tensor, like: Tensor) -> Tensor:
        """The vectors of positions `pos` [B,T], normalised and projected: [B,H,T,D]."""
        vectors = precise(F.embedding(pos.clamp(min=0), self.table), like)  # padding may lie before 0
        weight, bias = (precise(x, like) for x in (self.norm.weight, self.norm.bias))
        projected = F.layer_norm(vectors, weight.shape, weight, bias, self.norm.eps) @ precise(projection, like)
        return projected.unflatten(-1, (self.geometry.num_heads, -1)).transpose(1, 2)


@register("tupe_r")
class TUPERelative(TUPE):
    """Untied positional encoding with relative buckets (Ke et al., 2020, arXiv:2006.15595, eq. 8; TUPE-R).

    score(i, j) = [q_i k_j + (p_i U_h) (p_j V_h)] / sqrt(D) + b[h, bucket(i - j)]: `tupe`, and the buckets of `t5`.

    Args:
        max_positions: vectors p; default the native context. A position beyond is an error.
        init: U and b are "normal", or "zero".

    Needs training. Cost and differences are those of `tupe`. Differs from the paper: the buckets are those of a causal decoder.
    """

    def __init__(self, geometry: Geometry, *, max_positions: int | None = None, init: str = "normal"):
        super().__init__(geometry, max_positions=max_positions, init=init)
        self.buckets = T5Bias(geometry, init=init)

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return self.buckets.bias(h, q_pos, k_pos)
