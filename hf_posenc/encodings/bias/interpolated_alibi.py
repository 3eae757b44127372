from __future__ import annotations

from ..base import Geometry, register
from ..rotary.scaling import stretch
from .alibi import ALiBi, native_slopes


@register("interpolated_alibi")
class InterpolatedALiBi(ALiBi):
    """Position interpolation for ALiBi (Al-Khateeb et al., 2023, arXiv:2310.13017, section 3).

    score(i, j) = q_i k_j / sqrt(D) - m_h / s (i - j): every slope is divided by the factor s, so that distances of the longer context
    weigh as those of the native one did.

    Args:
        factor: s, target context over native context.
        target_length: target context in tokens, instead of `factor`.

    Works without training on a model that has ALiBi. Differs from the paper: s is fixed, not that of each text.
    """

    needs_training = "pretraining or fine-tuning, unless the model has ALiBi"

    def __init__(self, geometry: Geometry, *, factor: float | None = None, target_length: int | None = None):
        super().__init__(geometry)
        self.factor = stretch(self.name, geometry.max_positions, factor, target_length)

    def reset_buffers(self) -> None:
        self.set_buffer("slopes", native_slopes(self.geometry) / self.factor)

    @property
    def context_length(self) -> int:
        return round(self.factor * self.geometry.max_positions)
