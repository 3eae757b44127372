from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import LONGEST_TABLE, count, one_of
from .alibi import native_slopes

STARTS = ("normal", "zero", "alibi")


@register("t5")
class T5Bias(PositionalEncoding):
    """Relative position buckets (Raffel et al., 2019, arXiv:1910.10683, section 2.1).

    score(i, j) = q_i k_j / sqrt(D) + b[h, bucket(i - j)], one learned number a head and bucket, shared by all layers. The first
    half of the buckets holds one distance each, the rest grow logarithmically up to `max_distance`.

    Args:
        num_buckets: buckets of a causal decoder.
        max_distance: tokens; all greater distances share the last bucket.
        init: where new buckets start: "normal" (N(0, 1/M)), at "zero", or "alibi": ALiBi's bias in the middle of each bucket, which
            is ALiBi itself where a bucket holds one distance, and constant beyond `max_distance`.

    A model that has such buckets keeps its own. Needs training, wherever they are new. Differs from the paper: the scores are divided
    by sqrt(D), where the host model does it.
    """

    relative = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, num_buckets: int = 32, max_distance: int = 128, init: str = "normal"):
        super().__init__(geometry)
        self.num_buckets = count("num_buckets", num_buckets, 2, LONGEST_TABLE)
        self.max_distance = count("max_distance", max_distance, self.num_buckets // 2 + 1)
        self.table = nn.Parameter(torch.randn(self.num_buckets, geometry.num_heads) * geometry.hidden_size**-0.5)
        if one_of("init", init, STARTS) == "zero":
            self.starts_as = "nope"
            nn.init.zeros_(self.table)
        elif init == "alibi":
            self.table.data = -self.middle()[:, None] * native_slopes(geometry)

    def adopt(self, table: Tensor) -> None:
        if table.shape == self.table.shape:
            self.table, self.starts_as = nn.Parameter(table.detach().clone()), ""

    def bucket(self, distance: Tensor) -> Tensor:
        """Bucket of each distance i - j in tokens; the future shares the bucket of distance 0."""
        exact = self.num_buckets // 2
        distance = distance.clamp(min=0)
        spread = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact) * (self.num_buckets - exact)
        far = (exact + spread.to(torch.long)).clamp(max=self.num_buckets - 1)
        return torch.where(distance < exact, distance.to(torch.long), far)

    def middle(self) -> Tensor:
        """Distance in the middle of each bucket, on the scale by which buckets grow: [num_buckets]."""
        bucket, exact = torch.arange(self.num_buckets), self.num_buckets // 2
        spread = (bucket - exact + 0.5) / (self.num_buckets - exact)
        return torch.where(bucket < exact, bucket, exact * (self.max_distance / exact) ** spread)

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return precise(self.table, q_pos)[self.bucket(q_pos - k_pos), h]
