from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..base import Geometry, register
from ..options import number, positive
from .rope import power_frequencies
from .scaling import ScaledRoPE


@register("lpes")
class LayerScaledRoPE(ScaledRoPE):
    """Layer-specific scaling of positions (Wang et al., 2025, arXiv:2503.04355, LPES).

    R(t) -> R(t / s_l) with a factor s_l of layer l, from a Bezier curve over the depth x = l / (N - 1) of the N layers:
    s_l = 1 + (s - 1) sum_i binom(m, i) x^i (1 - x)^(m - i) c_i.

    Args:
        factor: s, the factor where the curve is 1.
        target_length: context in tokens whose ratio to the native one is s, instead of `factor`.
        curve: c_0 to c_m, each from 0 to 1, at least two; default [0, 1], a straight line from no scaling in the first layer.
        factors: s_l of all N layers, instead of a curve.

    Works without training. Differs from the paper: its genetic search for the curve, which is another for each model, is left out, so
    that the default curve is none of the paper's; and without its variants on top of dynamic NTK. The authors published no code.
    """

    per_layer = True

    def __init__(
        self,
        geometry: Geometry,
        *,
        factor: float | None = None,
        target_length: int | None = None,
        curve: Sequence[float] | None = None,
        factors: Sequence[float] | None = None,
    ):
        if factors is not None:
            if (factor, target_length, curve) != (None, None, None):
                raise ValueError("factors= says all that factor=, target_length= and curve= would; give it alone")
            factors = _numbers("factors", factors, geometry.num_layers, geometry.num_layers)
            factor = max(1.0, *(positive("factors", each, at_most=10_000.0) for each in factors))
        super().__init__(geometry, factor=factor, target_length=target_length)
        self.curve = [number("curve", each, 0.0, 1.0) for each in _numbers("curve", (0.0, 1.0) if curve is None else curve, 2, 64)]
        self.factors = factors

    def layer_factor(self) -> float:
        """s_l of the layer that the encoding is for."""
        geometry, m = self.geometry, len(self.curve) - 1
        if self.factors is not None:
            return float(self.factors[geometry.layer])
        x = geometry.layer / max(geometry.num_layers - 1, 1)
        return 1 + (self.factor - 1) * sum(math.comb(m, i) * x**i * (1 - x) ** (m - i) * c for i, c in enumerate(self.curve))

    def inverse_frequencies(self) -> Tensor:
        return power_frequencies(self.theta, self.dim) / self.layer_factor()


def _numbers(name: str, values: Sequence[float], least: int, most: int) -> Sequence[float]:
    if not isinstance(values, list | tuple) or not least <= len(values) <= most:
        raise ValueError(f"{name} are {least if least == most else f'{least} to {most}'} numbers, got {values!r}")
    return values
