from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, register
from .limited import Limited


@register("multiplicative")
class Multiplicative(Limited):
    """Learned positions that multiply the embedding (Su, 2021, kexue.fm/archives/8130; bert4keras, merge_mode "mul").

    x_t -> x_t (1 + P[t]), elementwise; P is 0 at first.

    Args:
        max_positions: rows of P; default the native context. A position beyond is an error.

    Needs training; right after the patch the model has no positions (`nope`).
    """

    needs_training = "pretraining or fine-tuning with the new table"
    starts_as = "nope"
    beyond = "the learned table of"

    def __init__(self, geometry: Geometry, *, max_positions: int | None = None):
        super().__init__(geometry, max_positions)
        self.table = nn.Parameter(torch.zeros(self.rows, geometry.hidden_size))

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        return x + x * F.embedding(pos.to(self.table.device), self.table).to(x)
