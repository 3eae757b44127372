from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import count, positive
from .base import Temperature


@register("llama4_scale")
class Llama4Temperature(Temperature):
    """The temperature of Llama 4 (Meta, 2025, transformers `Llama4TextAttention`), after Scalable-Softmax (arXiv:2501.19399).

    The query at position i is multiplied by 1 + a ln(1 + floor((i + 1) / F)). Llama 4 has it in its layers without positions alone, see
    `irope`.

    Args:
        attn_scale: a.
        floor_scale: F in tokens.

    Works without training.
    """

    def __init__(self, geometry: Geometry, *, attn_scale: float = 0.1, floor_scale: int = 8192):
        super().__init__(geometry)
        self.attn_scale, self.floor_scale = positive("attn_scale", attn_scale), count("floor_scale", floor_scale)

    def factor(self, pos: Tensor) -> Tensor:
        return 1 + self.attn_scale * torch.log1p(torch.floor((pos + 1) / self.floor_scale))
