from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import count, flag
from .rope import RoPE


@register("clipped_rope")
class ClippedRoPE(RoPE):
    """Clipped RoPE (Li et al., 2026, "CoPE", arXiv:2602.05258; hrlics/CoPE).

    The lowest c frequencies are tapered off: the i-th of them is multiplied by (1 + cos(pi i / (c - 1))) / 2, so that the first stays and
    the last is 0. Not the contextual encoding that is called CoPE too.

    Composes with a scaling that the model already has, unless its frequencies depend on the length of the text.

    Args:
        clipped: c; the authors take 20 of 64 pairs, which is the default fraction.
        hard: set all c frequencies to 0 instead, the authors' HardClip.
        theta: base of the frequencies; default the model's own.

    Needs training: the authors continue pretraining at the target length.
    """

    needs_training = "continued pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, clipped: int | None = None, hard: bool = False, theta: float | None = None):
        super().__init__(geometry, theta=theta)
        pairs = self.dim // 2
        self.clipped = max(1, round(pairs * 20 / 64)) if clipped is None else count("clipped", clipped, at_most=pairs)
        self.hard = flag("hard", hard)

    def inverse_frequencies(self) -> Tensor:
        frequencies = super().inverse_frequencies()
        angles = torch.linspace(0, math.pi, self.clipped, device=frequencies.device)  # without one, transformers makes it on the CPU
        taper = torch.zeros(self.clipped) if self.hard else (1 + angles.cos()) / 2
        return frequencies * torch.cat((torch.ones(len(frequencies) - self.clipped), taper))

    def rope_parameters(self):
        return None
