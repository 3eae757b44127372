from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from ..base import register
from .rope import power_frequencies
from .scaling import ScaledRoPE

Number = TypeVar("Number", float, Tensor)


def stretched_base(theta: float, dim: int, factor: Number) -> Number:
    """theta * s^(r / (r - 2)): the lowest frequency is divided by exactly s, the highest stays."""
    return theta * factor ** (dim / (dim - 2) if dim > 2 else 0)


@register("ntk")
class NTKAware(ScaledRoPE):
    """NTK-aware scaling (bloc97, 2023; in Peng et al., 2023, arXiv:2309.00071, section 3.1).

    theta -> theta * s^(r / (r - 2)), with r the rotated width.

    Args:
        factor: s, target context over native context.
        target_length: target context in tokens, instead of `factor`.

    Works without training up to somewhat less than s times the native context.
    """

    def base(self) -> float:
        return stretched_base(self.theta, self.dim, self.factor)

    def inverse_frequencies(self) -> Tensor:
        return power_frequencies(self.base(), self.dim)

    def rope_parameters(self):
        return {"rope_type": "default", "rope_theta": self.base()}
