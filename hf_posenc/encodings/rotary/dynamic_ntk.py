from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, register, widest
from .by_length import RoPEBySteps
from .ntk import stretched_base
from .rope import exponents


@register("dynamic_ntk")
class DynamicNTK(RoPEBySteps):
    """Dynamic NTK scaling (emozilla, 2023; in Peng et al., 2023, arXiv:2309.00071, section 3.3).

    theta -> theta * (s n / L - (s - 1))^(r / (r - 2)) for a text of n > L tokens, L the native context.

    Args:
        factor: s. The scale at n tokens is s n / L - (s - 1), so s sets how fast it grows.
        target_length: context in tokens whose ratio to L is s, instead of `factor`.
        step: beyond L, n grows in steps of this many tokens, so that rows share frequencies; default L / 64.

    Works without training. Differs from the paper: `step`; 1 is the paper's rule.
    """

    def __init__(self, geometry: Geometry, *, factor: float | None = None, target_length: int | None = None, step: int | None = None):
        super().__init__(geometry, factor=factor, target_length=target_length, step=step)

    def frequencies_for(self, pos: Tensor) -> Tensor:
        native = self.geometry.max_positions
        scale = self.factor * self.stepped(pos).to(widest(pos.device)) / native - (self.factor - 1)
        base = stretched_base(self.theta, self.dim, scale)[..., None]
        stretched = 1 / base ** exponents(self.dim, pos.device)
        return torch.where(pos[..., None] < native, self.inv_freq.to(pos.device), stretched.float())
