from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base import Geometry, PositionalEncoding, precise, register, widest
from ..options import flag

SMALLEST_SLOPE = 2.0**-8
"""Of those of the paper, whatever the number of heads."""


def alibi_slopes(num_heads: int) -> Tensor:
    """Slopes m_h [H], float32: 2^(-8h/H) for a power of two, else the next lower power's followed by every other of the next higher."""

    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8.0 * h / n) for h in range(1, n + 1)]

    power = 2 ** math.floor(math.log2(num_heads))
    return torch.tensor(geometric(power) + geometric(2 * power)[0::2][: num_heads - power])


def native_slopes(geometry: Geometry) -> Tensor:
    """Slopes [H], float32: those of a model that has ALiBi, else those of the paper."""
    return alibi_slopes(geometry.num_heads) if geometry.slopes is None else torch.tensor(geometry.slopes)


@register("alibi")
class ALiBi(PositionalEncoding):
    """Attention with linear biases (Press et al., 2021, arXiv:2108.12409, section 3).

    score(i, j) = q_i k_j / sqrt(D) - m_h (i - j), with one fixed slope m_h a query head. A model that has ALiBi keeps its own slopes.

    Args:
        learned: train the slopes, from where they are, one a head for all layers (tried in the paper, where it did not extrapolate well).

    Needs training; then holds its perplexity beyond the length it was trained at.
    """

    slopes: Tensor
    relative = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, learned: bool = False):
        super().__init__(geometry)
        self.learned = flag("learned", learned)
        if learned:
            self.slopes = nn.Parameter(native_slopes(geometry))
            self.starts_as = "alibi"

    def reset_buffers(self) -> None:
        if not self.learned:
            self.set_buffer("slopes", native_slopes(self.geometry))

    def columns(self, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        # As numbers of its own, since the ALiBi that flash attention has for `k_pos` itself gives slopes no gradient.
        return self.slopes, k_pos.to(widest(k_pos.device)) if self.learned else k_pos

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return -precise(self.slopes, q_pos)[h] * (q_pos - k_pos).abs()
