from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, PositionalEncoding, precise, register
from ..bias.t5 import T5Bias
from ..options import LONGEST_TABLE, count, flag, one_of

STARTS = ("normal", "zero")
INIT_STD = 0.02


@register("tupe")
class TUPE(PositionalEncoding):
    """Untied positional encoding (Ke et al., 2020, arXiv:2006.15595, section 3.1).

    score(i, j) = [q_i k_j + (p_i U_h) (p_j V_h)] / sqrt(D) + b[h, bucket(i - j)], with p_t the normalised learned vector of position t, U
    and V projections of it, and b the buckets of `t5`, all shared by the layers.

    Cost: V_h p_j is kept with the key of each token, for each query head: keys in the cache are 1 + H/G times as wide.

    Args:
        max_positions: vectors p; default the native context. A position beyond is an error.
        buckets: with b (TUPE-R), or without (TUPE-A).
        init: "normal" (N(0, 0.02)), or "zero": U and b are 0 at first.

    Needs training. Differs from the paper: all is divided by sqrt(D), not sqrt(2 D), a temperature; and the first token is like any other,
    since it is no [CLS].
    """

    any_length = False
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, max_positions: int | None = None, buckets: bool = True, init: str = "normal"):
        super().__init__(geometry)
        self.rows = geometry.max_positions if max_positions is None else count("max_positions", max_positions, at_most=LONGEST_TABLE)
        zero, (heads, width) = one_of("init", init, STARTS) == "zero", (geometry.num_heads, geometry.head_dim)
        self.starts_as = "nope" if zero else ""
        self.table = nn.Parameter(torch.randn(self.rows, geometry.hidden_size) * INIT_STD)
        self.norm = nn.LayerNorm(geometry.hidden_size)
        self.u, self.v = (nn.Parameter(torch.randn(geometry.hidden_size, heads * width) * INIT_STD) for _ in range(2))
        if zero:
            nn.init.zeros_(self.u)
        self.buckets = T5Bias(geometry, init="zero" if zero else "normal") if flag("buckets", buckets) else None

    @property
    def context_length(self) -> int:
        return self.rows

    def check_positions(self, last: int) -> None:
        if last >= self.rows:
            raise ValueError(
                f"position {last} lies past the {self.rows} vectors of tupe: "
                f"patch with max_positions={last + 1} and train, or shorten the input"
            )

    def cached_key(self, k: Tensor, pos: Tensor) -> Tensor:
        state = self.projected(pos, self.v, k).unflatten(-1, (k.shape[1], -1)).transpose(1, 2)
        return torch.cat((k, state.to(k.dtype).expand(len(k), -1, -1, -1)), -1)

    def context_bias(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, scaling: float) -> Tensor:
        width, groups = q.shape[-1], k.shape[1]
        from_query = self.projected(q_pos, self.u, q).unflatten(-1, (groups, -1, self.geometry.head_dim)).permute(0, 2, 3, 1, 4)
        from_key = precise(k[..., width:], q).unflatten(-1, (-1, self.geometry.head_dim)).transpose(2, 3)
        scores = (from_query * scaling @ from_key.mT).flatten(1, 2)
        return scores if self.buckets is None else scores + self.buckets.bias_matrix(q_pos, k_pos)

    def projected(self, pos: Tensor, projection: Tensor, like: Tensor) -> Tensor:
        """The vectors of positions `pos` [B,T], normalised and projected: [B,T,H*D]."""
        vectors = precise(F.embedding(pos, self.table), like)
        weight, bias = (precise(x, like) for x in (self.norm.weight, self.norm.bias))
        return F.layer_norm(vectors, weight.shape, weight, bias, self.norm.eps) @ precise(projection, like)
