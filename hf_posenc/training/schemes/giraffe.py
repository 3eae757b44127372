from __future__ import annotations

import torch
from torch import Tensor

from .base import Document, PositionScheme, scheme


@scheme("giraffe")
class Giraffe(PositionScheme):
    """Random steps between positions (Pal et al., 2023, arXiv:2308.10882; `randomize` of the authors' code).

    t_i = u_0 + ... + u_i with u ~ U(0, 2); where the last of L positions lies past L, all are shrunk by L / t_(L-1). They lie between whole
    numbers: for rotations, `sinusoidal` and biases that are functions of the distance, not for tables. The authors have it beside a RoPE
    that is stretched, or whose frequencies are changed.

    Differs from the authors' code: one draw for each text, seeded; there one for each forward pass and row.
    """

    whole = False

    def draw(self, document: Document, generator: torch.Generator) -> Tensor:
        places = (2 * torch.rand(len(document), generator=generator, dtype=torch.float64)).cumsum(0)
        return places * (len(document) / places[-1].clamp(min=len(document)))

    def reach(self, length: int) -> int:
        return length + 1
