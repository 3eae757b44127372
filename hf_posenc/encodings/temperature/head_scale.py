from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, precise, register
from ..options import positive
from .base import Temperature


@register("head_scale")
class HeadScale(Temperature):
    """A learned scale for each head (Wang et al., 2024, arXiv:2404.12224).

    All queries of head h are multiplied by l_h, learned in each layer. The authors train nothing else, in a model without positions, at
    the length that it is to reach.

    Args:
        init: l_h before training. At 1, the model computes what it did; the script of the authors begins with 1.6, for 4 times the length.

    Needs training. Differs from the authors' code: l_h stay in the precision of the model, theirs are always in bfloat16. Where it is the
    temperature of an encoding that all layers share, so are its l_h.
    """

    relative = True
    per_layer = True
    needs_training = "fine-tuning at the length to reach, of itself alone"

    def __init__(self, geometry: Geometry, *, init: float = 1.0):
        super().__init__(geometry)
        self.scale = nn.Parameter(torch.full((geometry.num_heads,), positive("init", init)))

    def factor(self, pos: Tensor) -> Tensor:
        return precise(self.scale, pos)[:, None]
