from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import count, flag
from .base import Temperature


@register("log_n")
class LogN(Temperature):
    """Temperature by the logarithm of the length (Chiang and Cholak, 2022, arXiv:2202.12172; Su, 2021, kexue.fm/archives/8823).

    The query at position i, which sees n = i + 1 keys, is multiplied by max(1, ln n / ln L): the entropy of attention stays what it was
    at the length L of training, however long the text.

    Args:
        trained_length: L in tokens; default the native context.
        clip: leave queries within L alone, as Qwen and ReRoPE do. Without, they are multiplied by ln n / ln L too, for models that
            train with it.

    Works without training.
    """

    def __init__(self, geometry: Geometry, *, trained_length: int | None = None, clip: bool = True):
        super().__init__(geometry)
        self.trained_length = count("trained_length", trained_length, 2) if trained_length is not None else max(2, geometry.max_positions)
        self.clip = flag("clip", clip)

    def factor(self, pos: Tensor) -> Tensor:
        factor = torch.log1p(pos) / math.log(self.trained_length)
        return factor.clamp(min=1) if self.clip else factor
