from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import count, positive
from .base import Temperature


@register("ministral_scale")
class MinistralTemperature(Temperature):
    """The temperature of Ministral 3 (Mistral AI, 2025, transformers `get_llama_4_attn_scale`).

    The query at position i is multiplied by 1 + b ln(1 + floor(i / L)): that of Llama 4 but for its i + 1, and beside rotations.

    Args:
        beta: b.
        trained_length: L in tokens; default the native context.

    Works without training.
    """

    def __init__(self, geometry: Geometry, *, beta: float = 0.1, trained_length: int | None = None):
        super().__init__(geometry)
        self.beta = positive("beta", beta)
        self.trained_length = geometry.max_positions if trained_length is None else count("trained_length", trained_length)

    def factor(self, pos: Tensor) -> Tensor:
        return 1 + self.beta * torch.log1p(torch.floor(pos / self.trained_length))
