from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import LONGEST_TABLE, count, one_of
from .shaw import looked_up

STARTS = ("normal", "zero")
INIT_STD = 0.02


@register("deberta")
class DeBERTa(PositionalEncoding):
    """Disentangled attention (He et al., 2020, arXiv:2006.03654, section 3.1).

    score(i, j) = [q_i k_j + q_i K_h[b] + k_j Q_h[b]] / sqrt(D) with b = bucket(i - j), and vectors K, Q learned for each head of each
    layer. The first half of the buckets holds one distance each, the rest grow logarithmically up to `max_distance`.

    Args:
        buckets: vectors of each kind.
        max_distance: tokens; None gives each distance a vector of its own, and all from `buckets` - 1 on the last (DeBERTa v1 has 512).
        init: "normal" (N(0, 0.02)) or "zero".

    Needs training. Differs from the paper: all is divided by sqrt(D), not sqrt(3 D), a temperature; K and Q are what there are projections
    of vectors that the layers share; and there are none for keys after the query, which a decoder does not see. The authors' code takes
    Q of i - j too, where the paper says j - i: the same, where each has a vector of its own.
    """

    relative = True
    per_layer = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, buckets: int = 256, max_distance: int | None = 512, init: str = "normal"):
        super().__init__(geometry)
        self.buckets = count("buckets", buckets, 2, LONGEST_TABLE)
        self.max_distance = None if max_distance is None else count("max_distance", max_distance, buckets // 2 + 2)
        shape = geometry.num_heads, self.buckets, geometry.head_dim
        self.key_table, self.query_table = (nn.Parameter(torch.randn(shape) * INIT_STD) for _ in range(2))
        if one_of("init", init, STARTS) == "zero":
            self.starts_as = "nope"
            for table in (self.key_table, self.query_table):
                nn.init.zeros_(table)

    def bucket(self, distance: Tensor) -> Tensor:
        """Bucket of each distance i - j in tokens; the future shares the bucket of distance 0."""
        distance = distance.clamp(min=0)
        if self.max_distance is not None:
            middle = self.buckets // 2
            last = torch.full((), (self.max_distance - 1) / middle, device=distance.device)
            spread = (distance.clamp(min=1) / middle).log() / last.log() * (middle - 1)  # 1 at the last one, exactly
            distance = torch.where(distance <= middle, distance, spread.ceil().long() + middle)
        return distance.clamp(max=self.buckets - 1)

    def context_bias(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, scaling: float) -> Tensor:
        keys, queries = precise(self.key_table, q).mT, precise(self.query_table, q).mT * scaling
        bucket = self.bucket(q_pos[:, :, None] - k_pos[:, None, :])
        from_query = looked_up(precise(q, q) @ keys * scaling, bucket)
        by_key = precise(k, q)[:, :, None] @ queries.unflatten(0, (k.shape[1], -1))
        return from_query + looked_up(by_key.flatten(1, 2), bucket.mT).mT
