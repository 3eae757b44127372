from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import count, one_of

SLOPES = ("harmonic", "exponential")


@register("nape")
class NAPE(PositionalEncoding):
    """NoPE and ALiBi, each in half of the heads (Vasylenko et al., 2025, arXiv:2506.16640, where it goes with entmax).

    score(i, j) = q_i k_j / sqrt(D) - m_h (i - j), with m_h = 1 / h in the first heads h = 1 .. n, and 0 in the others.

    Args:
        alibi_heads: n, query heads with ALiBi; default H / 2.
        slopes: "harmonic" (1 / h), or "exponential" (2^(1-h)), the other choice of the authors' code.

    Needs training; then holds its perplexity beyond the length it was trained at. Differs from the paper: under the softmax of the model;
    heads that share keys may be of both kinds.
    """

    slopes: Tensor
    relative = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, alibi_heads: int | None = None, slopes: str = "harmonic"):
        super().__init__(geometry)
        self.heads = (
            max(1, geometry.num_heads // 2) if alibi_heads is None else count("alibi_heads", alibi_heads, at_most=geometry.num_heads)
        )
        self.kind = one_of("slopes", slopes, SLOPES)

    def reset_buffers(self) -> None:
        h = torch.arange(self.geometry.num_heads)
        slopes = 1 / (h + 1) if self.kind == "harmonic" else 0.5**h
        self.set_buffer("slopes", torch.where(h < self.heads, slopes, 0.0))

    def columns(self, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        return self.slopes, k_pos

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return -precise(self.slopes, q_pos)[h] * (q_pos - k_pos).abs()
