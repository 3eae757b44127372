from __future__ import annotations

from torch import Tensor

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import FARTHEST, positive
from .alibi import native_slopes

STEEPEST = 60.0
"""Of what sinh is taken of: beyond, keys have no weight, and float32 no numbers."""


@register("hype")
class HyPE(PositionalEncoding):
    """Hyperbolic biases (Angelotti, 2023, arXiv:2310.19676).

    score(i, j) = q_i k_j / sqrt(D) - t m_h sinh((i - j) / t), with ALiBi's slopes m (or the model's own): ALiBi at distances below t,
    exponentially steeper beyond.

    Args:
        reach: t in tokens; default the native context.

    Needs training. Differs from the paper: the bias is a table of the distance, not four columns, which half precision could not hold.
    """

    slopes: Tensor
    relative = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, reach: float | None = None):
        super().__init__(geometry)
        self.reach = float(geometry.max_positions) if reach is None else positive("reach", reach, at_most=FARTHEST)

    def reset_buffers(self) -> None:
        self.set_buffer("slopes", native_slopes(self.geometry))

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = precise(q_pos - k_pos, q_pos) / self.reach
        return -self.reach * precise(self.slopes, q_pos)[h] * distance.clamp(-STEEPEST, STEEPEST).sinh()
