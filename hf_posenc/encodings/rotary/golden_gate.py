from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base import Geometry, register
from ..options import count, number
from .rope_nd import OnAxes


@register("golden_gate")
class GoldenGate(OnAxes):
    """Golden gate RoPE (Xiong, 2025, "On N-dimensional Rotary Positional Embeddings"): pairs turn along directions spread over the sphere.

    Pair k of head h turns by f_k times the sum over the axes of u_a p_a, with directions u of length 1 that no two pairs share: u is
    erfinv(2 z - 1) over its length, with z_a = n phi^-a mod 1, n = 1, 2 ... through the pairs of all heads, and phi the root of
    x^(axes + 1) = x + 1 (the golden ratio for one axis). Positions come as `position_ids` of [axes, batch, tokens].

    Args:
        axes: their number.
        still: share of the pairs, those of the lowest frequencies, that do not turn.

    Needs fine-tuning, text included, whose axes are equal. Differs from the author's code: the frequencies are the model's own, where he
    takes a range that suits images; heads that share a key share directions.
    """

    directions: Tensor
    needs_training = "fine-tuning"

    def __init__(self, geometry: Geometry, *, axes: int = 2, still: float = 0.0):
        super().__init__(geometry)
        self.axes, self.still = count("axes", axes, at_least=2, at_most=16), number("still", still, 0.0, 1.0)

    def axis_of_pairs(self) -> Tensor:
        return torch.zeros(self.num_pairs, dtype=torch.long)  # no pair has one of its own

    def reset_buffers(self) -> None:
        super().reset_buffers()
        groups, phi = self.geometry.num_kv_heads, 2.0
        for _ in range(64):
            phi = (1 + phi) ** (1 / (self.axes + 1))
        z = torch.tensor([[n * phi**-a % 1 for n in range(1, groups * self.num_pairs + 1)] for a in range(1, self.axes + 1)])
        directions = F.normalize(torch.erfinv(2 * z - 1), dim=0).unflatten(1, (groups, -1)).movedim(1, 0)
        turning = self.num_pairs - round(self.still * self.num_pairs)
        self.set_buffer("directions", directions * (torch.arange(self.num_pairs) < turning))

    def turn(self, x: Tensor, pos: Tensor) -> Tensor:
        return self.turn_along(x, pos, self.directions)
