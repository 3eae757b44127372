from __future__ import annotations

import math

from torch import Tensor

from ..base import Geometry
from ..options import positive
from ..rotary.scaling import stretch
from .base import Temperature


class ByFactor(Temperature):
    """A factor for all queries alike, (1 + c ln s)^`power`, from the extension s of the context.

    Args:
        factor: s, target context over native context.
        target_length: target context in tokens, instead of `factor`.
        coefficient: c.
    """

    relative = True
    power = 1

    def __init__(self, geometry: Geometry, *, factor: float | None = None, target_length: int | None = None, coefficient: float = 0.1):
        super().__init__(geometry)
        self.log_factor = math.log(stretch(self.name, geometry.max_positions, factor, target_length))
        self.coefficient = positive("coefficient", coefficient)
        self.constant = (1 + self.coefficient * self.log_factor) ** self.power

    def factor(self, pos: Tensor) -> Tensor:
        return pos.new_full((1, 1, 1), self.constant)
