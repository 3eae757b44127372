from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import count
from .sandwich import AT_ONCE, LARGEST_DIM

INIT_STD = 0.02


@register("mega")
class Mega(PositionalEncoding):
    """The rotary relative bias of Mega (Ma et al., 2022, arXiv:2209.10655, appendix).

    score(i, j) = q_i k_j / sqrt(D) + (R(i) a_h) (R(j) b_h), with two learned vectors for each head of each layer, turned as `rope` turns
    queries and keys: sum over k of u_k cos((i - j) f_k) - v_k sin((i - j) f_k) with u + i v = a conj(b) and f_k = 10000^(-2k/d).

    Args:
        dim: d, the width of the vectors.

    Needs training. Differs from the authors' code: it has one head.
    """

    inv_freq: Tensor
    relative = True
    per_layer = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, dim: int = 128):
        super().__init__(geometry)
        self.dim = count("dim", dim, 2, LARGEST_DIM)
        if dim % 2:
            raise ValueError(f"dim must be even, got {dim}: it is turned in pairs")
        self.a, self.b = (nn.Parameter(torch.randn(geometry.num_heads, dim) * INIT_STD) for _ in range(2))

    def reset_buffers(self) -> None:
        self.set_buffer("inv_freq", 10_000.0 ** (-torch.arange(0, self.dim, 2).float() / self.dim))

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance, inv_freq = (precise(x, q_pos) for x in (q_pos - k_pos, self.inv_freq))
        (a, a_turned), (b, b_turned) = (precise(x, q_pos).chunk(2, -1) for x in (self.a, self.b))
        u, v = a * b + a_turned * b_turned, a_turned * b - a * b_turned
        if distance.ndim and distance.numel() * len(inv_freq) <= AT_ONCE and not torch.compiler.is_compiling():
            angle = distance[..., None] * inv_freq
            by_head = angle.cos() @ u.T - angle.sin() @ v.T
            return torch.take_along_dim(by_head, h[..., None], -1)[..., 0]
        total = torch.zeros_like(distance)
        for k, frequency in enumerate(inv_freq):
            angle = distance * frequency
            total = total + u[h, k] * angle.cos() - v[h, k] * angle.sin()
        return total
