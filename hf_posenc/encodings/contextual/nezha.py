from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import LONGEST_TABLE, count
from .shaw import at_distance


@register("nezha")
class NEZHA(PositionalEncoding):
    """Relative vectors that are sinusoids (Wei et al., 2019, arXiv:1909.00204, section 2.1).

    score(i, j) = q_i (k_j + a[min(i - j, K)]) / sqrt(D), with a[t]_2k = sin((K - t) f_k), a[t]_2k+1 = cos((K - t) f_k) and
    f_k = 10000^(-2k/D): `shaw` without anything to learn.

    Args:
        max_distance: K in tokens; all greater distances share the last vector.

    Needs training. Differs from the paper: only the keys are changed, not the values. The sinusoids are those of the authors' code, which
    counts from the farthest key, where the paper takes those of j - i.
    """

    table: Tensor
    relative = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, max_distance: int = 64):
        super().__init__(geometry)
        if geometry.head_dim % 2:
            raise ValueError(f"nezha pairs dimensions of a head, but head_dim is odd: {geometry.head_dim}")
        self.max_distance = count("max_distance", max_distance, at_most=LONGEST_TABLE)

    def reset_buffers(self) -> None:
        width = self.geometry.head_dim
        inv_freq = 10_000.0 ** (-torch.arange(0, width, 2).float() / width)
        angle = torch.arange(self.max_distance, -1, -1)[:, None] * inv_freq
        self.set_buffer("table", torch.stack((angle.sin(), angle.cos()), -1).flatten(1))

    def context_bias(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, scaling: float) -> Tensor:
        return at_distance(precise(q, q) @ precise(self.table, q).T * scaling, q_pos, k_pos)
