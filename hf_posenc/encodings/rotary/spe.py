from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Block, Geometry, PositionalEncoding, precise, register, widest
from ..options import count, flag

LOW = 4.0
"""What is taken off the frequencies at first, before the sigmoid, so that they are low."""


@register("spe")
class SPE(PositionalEncoding):
    """Stochastic positional encoding with sines (Liutkus et al., 2021, arXiv:2105.08399, section 2.1; aliutkus/spe), in expectation.

    score(i, j) = sum over the dimensions d of a head of q_d k_d P_d(i - j) / sqrt(D), with a learned kernel for each dimension,
    P_d(t) = sum over K sines of g^2 cos(2 pi f t + o) / (2 K), 0 <= f <= 1/2 and g >= 0, of each key-value head in each layer.

    Args:
        sines: K.
        gated: P_d -> c_d + (1 - c_d) P_d with learned c in [0, 1] (section 2.3), at first 1/2.

    Needs training. Queries and keys are 2K times as wide as a head, and the values' sum costs what it did; the KV cache holds them as the
    model has them. Differs from the authors' code: they draw random features of P for attention in linear time, of which this is the
    expectation; heads that share a key share P.
    """

    caches = "raw"
    relative = True
    per_layer = True
    needs_training = "pretraining"

    def __init__(self, geometry: Geometry, *, sines: int = 5, gated: bool = False):
        super().__init__(geometry)
        shape = geometry.num_kv_heads, geometry.head_dim, count("sines", sines, at_most=64)
        self.freqs, self.offsets = nn.Parameter(torch.randn(shape) - LOW), nn.Parameter(torch.randn(shape))
        gains = torch.randn(shape)
        self.gains = nn.Parameter(2 * gains / gains.norm(dim=-1, keepdim=True).sqrt())
        self.gate = nn.Parameter(torch.zeros(shape[:2])) if flag("gated", gated) else None

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        size = F.softplus(precise(self.gains, block.q)).square() / (2 * self.gains.shape[-1])
        constant = None if self.gate is None else precise(self.gate, block.q).sigmoid()
        if constant is not None:
            size = size * (1 - constant)[..., None]
        q = self._waves(block.q, block.q_pos, precise(self.offsets, block.q), size)
        k = self._waves(block.k, block.k_pos, 0.0, None)
        if constant is not None:
            gate = constant.repeat_interleave(block.q.shape[1] // len(constant), 0)[:, None]
            q, k = torch.cat((q, (block.q * gate).to(q.dtype)), -1), torch.cat((k, block.k), -1)
        return q, k

    def _waves(self, x: Tensor, pos: Tensor, offset: Tensor | float, size: Tensor | None) -> Tensor:
        """x [B,H,T,D] times each of its K cosines and sines: [B,H,T,2KD]."""
        wide = widest(pos.device)
        turns = pos.to(wide)[:, None, :, None, None] * (precise(self.freqs, x).sigmoid() / 2).to(wide)[:, None]  # [1 or B,G,T,D,K]
        angle = precise(turns.frac() * (2 * math.pi), x) + (offset[:, None] if isinstance(offset, Tensor) else offset)
        waves = torch.stack((angle.cos(), angle.sin()), -1)
        if size is not None:
            waves = waves * size[:, None, :, :, None]
        heads = precise(x, x).unflatten(1, (waves.shape[1], -1))[..., None, None]
        return (heads * waves[:, :, None]).flatten(1, 2).flatten(-3).to(x.dtype)
