from __future__ import annotations

from ..base import Geometry, register
from .constant import ByFactor


@register("drope_scale")
class DroPETemperature(ByFactor):
    """The temperature of DroPE (Gelberg et al., 2025, arXiv:2512.12167), for a model whose positions were dropped.

    All queries are multiplied by 1 + c ln s; the paper does so beside `nope`.

    Args:
        factor: s, target context over native context.
        target_length: target context in tokens, instead of `factor`.
        coefficient: c: 0.412 in a model from scratch, 0.103 in SmolLM.

    Works without training, on a model that was recalibrated without positions. Differs from the authors' code: there the
    result is a number in the configuration, `softmax_scale`; the two values of c are as others quote them from the paper.
    """

    def __init__(self, geometry: Geometry, *, factor: float | None = None, target_length: int | None = None, coefficient: float = 0.412):
        super().__init__(geometry, factor=factor, target_length=target_length, coefficient=coefficient)
