from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import PositionalEncoding, precise, register


def alibi_slopes(num_heads: int) -> Tensor:
    """Slopes m_h [H], float32: 2^(-8h/H) for a power of two, else the next lower power's followed by every other of the next higher."""

    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8.0 * h / n) for h in range(1, n + 1)]

    power = 2 ** math.floor(math.log2(num_heads))
    return torch.tensor(geometric(power) + geometric(2 * power)[0::2][: num_heads - power])


@register("alibi")
class ALiBi(PositionalEncoding):
    """Attention with linear biases (Press et al., 2021, arXiv:2108.12409, section 3).

    score(i, j) = q_i k_j / sqrt(D) - m_h (i - j), with one fixed slope m_h a query head. A model that has ALiBi keeps its own slopes.

    Needs training; then holds its perplexity beyond the length it was trained at.
    """

    slopes: Tensor
    relative = True
    needs_training = "pretraining or fine-tuning"

    def reset_buffers(self) -> None:
        own = self.geometry.slopes
        self.set_buffer("slopes", alibi_slopes(self.geometry.num_heads) if own is None else torch.tensor(own))

    def columns(self, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        return self.slopes, k_pos

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return -precise(self.slopes, q_pos)[h] * (q_pos - k_pos).abs()
