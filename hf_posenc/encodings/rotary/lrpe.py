from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, precise, register
from .learned_frequencies import LearnedFrequencies
from .rope import Place


@register("lrpe")
class LRPE(LearnedFrequencies):
    """Linearised relative positional encoding (Qin et al., 2023, arXiv:2307.09270, section 3.3, type 1).

    q_i, k_j -> R(i) H q_i, R(j) H k_j with R the rotation of RoPE, at learned frequencies, and the reflection H = I - 2 v v^T / |v|^2, with
    a learned v of the rotated dimensions for each layer and key-value head, which is one of the unitary transforms of the paper.

    Needs training. Differs from the paper: attention is softmax, where its is linear; v starts along the dimension that turns slowest, so
    that the model computes nearly what it did, where it is random in theirs; heads that share a key share v and frequencies. Type 2, which
    rotates half of a head, is for models that do so; type 3, a permutation, is `permuteformer`.
    """

    per_layer = True
    starts_as = ""

    def __init__(self, geometry: Geometry):
        super().__init__(geometry, geometry.num_kv_heads)
        self.v = nn.Parameter(torch.zeros(geometry.num_kv_heads, self.dim))
        self.v.data[:, -1] = 1.0

    def rotate_one(self, x: Tensor, pos: Tensor, place: Place | None = None) -> Tensor:
        return super().rotate_one(self.reflected(x), pos, place)

    def reflected(self, x: Tensor) -> Tensor:
        """H x, of x [B,H,T,D]."""
        v = precise(self.v, x)
        v = (v / v.norm(dim=-1, keepdim=True)).repeat_interleave(x.shape[1] // len(v), 0)[:, None]
        still = x.shape[-1] - self.dim
        v = F.pad(v, (still, 0) if self.geometry.rotates_last else (0, still))
        wide = precise(x, x)
        return (wide - 2 * (wide * v).sum(-1, keepdim=True) * v).to(x.dtype)
