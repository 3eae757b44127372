"""What the rotations share whose frequencies are learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, precise
from .rope import RoPE, cos_sin


class LearnedFrequencies(RoPE):
    """The model's own RoPE, its scaling included, with each frequency f at f e^a.

    What is stored is a rather than the logarithm of the frequency, so that half precision rounds little where a is small.

    Args:
        rows: sets of frequencies, one a key-value head; none for one that all heads share.
    """

    needs_training = "pretraining or fine-tuning"
    starts_as = "rope"
    slower: float = 1.0
    """What the learned number is divided by, so that an optimiser moves the frequency less."""

    def __init__(self, geometry: Geometry, *rows: int):
        super().__init__(geometry)
        self.log_scale = nn.Parameter(torch.zeros(*rows, self.dim // 2))

    def angles(self, pos: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        scaled = precise(self.inv_freq, like) * (precise(self.log_scale, like) / self.slower).exp()
        return cos_sin(pos, scaled, self.attention_factor, like)

    def frequencies(self) -> None:
        return None

    def rope_parameters(self):
        return None
