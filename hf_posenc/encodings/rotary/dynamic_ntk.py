from __future__ import annotations

from torch import Tensor

from ..base import Geometry, register
from ..options import count
from .by_length import RoPEByLength
from .ntk import stretched_base
from .rope import power_frequencies


@register("dynamic_ntk")
class DynamicNTK(RoPEByLength):
    """Dynamic NTK scaling (emozilla, 2023; in Peng et al., 2023, arXiv:2309.00071, section 3.3).

    theta -> theta * (s n / L - (s - 1))^(r / (r - 2)) for a text of n > L tokens, L the native context.

    Args:
        factor: s. The scale at n tokens is s n / L - (s - 1), so s sets how fast it grows.
        target_length: context in tokens whose ratio to L is s, instead of `factor`.
        step: beyond L, n grows in steps of this many tokens, so that rows share frequencies; default L / 64.

    Works without training. Differs from the paper: `step`; 1 is the paper's rule.
    """

    def __init__(self, geometry: Geometry, *, factor: float | None = None, target_length: int | None = None, step: int | None = None):
        super().__init__(geometry, factor=factor, target_length=target_length)
        self.step = max(1, geometry.max_positions // 64) if step is None else count("step", step)

    def regime(self, position: int) -> tuple[int, int]:
        beyond = position + 1 - self.geometry.max_positions
        length = self.geometry.max_positions + self.step * max(0, -(-beyond // self.step))
        return length, length

    def frequencies_at(self, length: int) -> Tensor:
        native = self.geometry.max_positions
        scale = self.factor * max(length, native) / native - (self.factor - 1)
        return power_frequencies(stretched_base(self.theta, self.dim, scale), self.dim)
