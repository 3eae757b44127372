from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base import Geometry, precise, register
from ..options import positive
from .base import Temperature


@register("ssmax")
class SSMax(Temperature):
    """Scalable-Softmax (Nakanishi, 2025, arXiv:2501.19399).

    The query of head h at position i, which sees n = i + 1 keys, is multiplied by s_h ln n, with s_h learned in each layer: the largest
    weight does not fade as the text grows.

    Args:
        init: s_h before training; default 1 over the mean of ln n for n = 1 .. L, the native context, so that the factor is 1 on average
            (the paper's 0.168, for L = 1024).

    Needs training, of a pretrained model a little. Where it is the temperature of an encoding that all layers share, so are its s_h.
    """

    per_layer = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, init: float | None = None):
        super().__init__(geometry)
        length = max(2, geometry.max_positions)
        start = length / math.lgamma(length + 1) if init is None else positive("init", init)
        self.scale = nn.Parameter(torch.full((geometry.num_heads,), start))

    def factor(self, pos: Tensor) -> Tensor:
        return precise(self.scale, pos)[:, None] * torch.log1p(pos)
