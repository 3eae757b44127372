from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, PositionalEncoding, precise, register, widest
from ..options import count

LARGEST_DIM = 1 << 16
AT_ONCE = 1 << 22
"""Cosines in memory at once; where there are more, those of one frequency after the other."""


@register("sandwich")
class Sandwich(PositionalEncoding):
    """Sandwich (Chi et al., 2022, arXiv:2212.10356, section 5).

    score(i, j) = q_i k_j / sqrt(D) + H / 8h (sum_k cos((i - j) 10000^(-2k/d)) - d/2) for head h = 1 .. H and k = 1 .. d/2: the inner
    product of two sinusoidal encodings, 0 at distance 0 (the - d/2 changes nothing, as softmax sees it).

    Args:
        dim: d, the width of the sinusoidal encodings.
        first: the first of d/2 successive k: 1 as in the equation, or 0, which gives the frequencies of `sinusoidal`.

    Needs training; then holds its perplexity beyond the length it was trained at.
    """

    inv_freq: Tensor
    relative = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, dim: int = 128, first: int = 1):
        super().__init__(geometry)
        self.dim = count("dim", dim, 2, LARGEST_DIM)
        if dim % 2:
            raise ValueError(f"dim must be even, got {dim}: it counts sines and cosines")
        self.first = count("first", first, 0, 1)

    def reset_buffers(self) -> None:
        k = torch.arange(self.dim // 2) + self.first
        self.set_buffer("inv_freq", (10_000.0 ** (-2 * k.to(widest(k.device)) / self.dim)).float())

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance, inv_freq = precise(q_pos - k_pos, q_pos), precise(self.inv_freq, q_pos)
        # Inside a kernel of flex attention, where `distance` is one number, and when compiled, no axis can or need be added.
        if distance.ndim and distance.numel() * len(inv_freq) <= AT_ONCE and not torch.compiler.is_compiling():
            total = ((distance[..., None] * inv_freq).cos() - 1).sum(-1)
        else:
            total = torch.zeros_like(distance)
            for one in inv_freq:
                total = total + ((distance * one).cos() - 1)
        return total * (self.geometry.num_heads / 8) / (h + 1)
