from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Block, Geometry, PositionalEncoding, precise, register, widest
from ..options import LARGEST_BASE, positive


@register("pope")
class PoPE(PositionalEncoding):
    """Polar coordinate position embedding (Gopalakrishnan et al., 2025, arXiv:2509.10534, section 3; lucidrains/PoPE-pytorch).

    score(i, j) = sum over the dimensions n of a head of softplus(q_n) softplus(k_n) cos((i - j) f_n - b_n) / sqrt(D): what a token says
    is in the magnitudes alone, where it is in the phases alone. f_n = theta^(-n/D), and the phases b from -2 pi to 0 are learned for each
    key-value head of each layer. Queries and keys are twice as wide as the head, in the KV cache too.

    Args:
        theta: base of the frequencies; default the model's own, or 10000 where it has none.

    Needs training. Differs from the paper: heads that share a key share b.
    """

    inv_freq: Tensor
    relative = True
    per_layer = True
    needs_training = "pretraining"

    def __init__(self, geometry: Geometry, *, theta: float | None = None):
        super().__init__(geometry)
        self.theta = geometry.theta if theta is None else positive("theta", theta, at_most=LARGEST_BASE)
        self.phase = nn.Parameter(torch.zeros(geometry.num_kv_heads, geometry.head_dim))

    def reset_buffers(self) -> None:
        width = self.geometry.head_dim
        self.set_buffer("inv_freq", self.theta ** (-torch.arange(width).float() / width))

    @torch.no_grad()
    def project(self) -> None:
        self.phase.clamp_(-2 * math.pi, 0)

    def cached_key(self, k: Tensor, pos: Tensor) -> Tensor:
        return self._polar(k, pos, precise(self.phase, k)[:, None])

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        return self._polar(block.q, block.q_pos, 0.0), block.k

    def _polar(self, x: Tensor, pos: Tensor, phase: Tensor | float) -> Tensor:
        """x [B,H,T,D] at `pos` [1 or B,T] as [B,H,T,2D]: magnitudes times the cosines, and times the sines, of the phases."""
        turned = pos.to(widest(pos.device))[:, None, :, None] * self.inv_freq.to(pos.device)
        size, angle = F.softplus(precise(x, x)), precise(turned.remainder(2 * math.pi), x) + phase
        return torch.cat((size * angle.cos(), size * angle.sin()), -1).to(x.dtype)
