from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base import Block, Geometry, PositionalEncoding, precise, register, widest
from ..options import LARGEST_BASE, positive


@register("coca")
class CoCA(PositionalEncoding):
    """Collinear constrained attention (Zhu et al., 2023, arXiv:2309.08646, section 3; codefuse-ai/Collinear-Constrained-Attention).

    The key that a query q meets is q * t_j, in its own direction pair by pair, so that the angle between them is that of the positions:
    score(i, j) = sum over the pairs n of |q_n|^2 t_n cos((i - j) f_n) / sqrt(D), with f_n = theta^(-2n/D), and t_n >= 0 the mean of the
    two numbers of pair n that the model projects its key to, or 0 where that is negative.

    Args:
        theta: base of the frequencies; default the model's own, or 10000 where it has none.

    Needs training. Differs from the authors' code: there t is turned and then multiplied by q, and so the score of a pair is
    t [|q|^2 cos(i f) cos(j f) - (a^2 - b^2) cos(i f) sin(j f) + 2 a b sin(i f) sin(j f)] for q = (a, b), no function of i - j.
    """

    inv_freq: Tensor
    relative = True
    needs_training = "pretraining"

    def __init__(self, geometry: Geometry, *, theta: float | None = None):
        super().__init__(geometry)
        if geometry.head_dim % 2:
            raise ValueError(f"coca pairs the dimensions of a head, and this model's have an odd number, {geometry.head_dim}")
        self.theta = geometry.theta if theta is None else positive("theta", theta, at_most=LARGEST_BASE)

    def reset_buffers(self) -> None:
        width = self.geometry.head_dim
        self.set_buffer("inv_freq", self.theta ** (-torch.arange(0, width, 2).float() / width))

    def cached_key(self, k: Tensor, pos: Tensor) -> Tensor:
        return self._turned(F.relu(self._pairs(k).mean(-1)), pos, k)

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        return self._turned(self._pairs(block.q).square().sum(-1), block.q_pos, block.q), block.k

    def _pairs(self, x: Tensor) -> Tensor:
        """[B,H,T,D] as [B,H,T,D/2,2]."""
        wide = precise(x, x)
        return wide.unflatten(-1, (-1, 2)) if self.geometry.interleaved else wide.unflatten(-1, (2, -1)).mT

    def _turned(self, size: Tensor, pos: Tensor, like: Tensor) -> Tensor:
        """Sizes [B,H,T,D/2] times the cosines and the sines of their angles at `pos` [1 or B,T]: [B,H,T,D]."""
        turned = pos.to(widest(pos.device))[:, None, :, None] * self.inv_freq.to(pos.device)
        angle = precise(turned.remainder(2 * math.pi), like)
        return torch.cat((size * angle.cos(), size * angle.sin()), -1).to(like.dtype)
