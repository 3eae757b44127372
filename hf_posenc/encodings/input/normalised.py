from __future__ import annotations

from torch import Tensor

from ..base import Geometry, precise, register
from ..options import count, positive
from .integer import add_to_first
from .limited import Limited


@register("normalised")
class Normalised(Limited):
    """The position as a fraction of the length, from 0 to 1: a textbook's second encoding.

    x_t -> x_t + scale t / (T - 1), in the first `channels` dimensions.

    Args:
        max_positions: T in tokens; default the native context. It is declared and does not follow the text, so that a token keeps its
            number while the text grows, and decoding equals evaluation.
        scale: number of the last position.
        channels: dimensions that get it; M for all, which a layer norm would take away (see `integer`).

    Needs training; a step is as long as the T that it was trained with says, so that another T is another encoding.
    """

    needs_training = "pretraining or fine-tuning, again for another max_positions"

    def __init__(self, geometry: Geometry, *, max_positions: int | None = None, scale: float = 1.0, channels: int = 1):
        super().__init__(geometry, max_positions)
        self.scale, self.channels = positive("scale", scale), count("channels", channels, at_most=geometry.hidden_size)

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        fraction = precise(pos, x) / max(self.rows - 1, 1)
        return add_to_first(x, self.scale * fraction[..., None].expand(*pos.shape, self.channels))
