from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, precise, register
from ..options import flag, positive
from .integer import add_to_first
from .limited import Limited


@register("binary")
class Binary(Limited):
    """The position in binary digits, one a dimension: a textbook's third encoding.

    x_t,k -> x_t,k + scale b_k(t), with t = sum_k b_k(t) 2^k for as many digits as the last position has; further dimensions stay.

    Args:
        max_positions: T in tokens, which need log2 T digits; default the native context.
        signed: the digits are -1 and 1 rather than 0 and 1, so that they add no mean.
        scale: size of a digit. With embeddings of standard deviation 0.02, 1 drowns them in those dimensions.

    Needs training.
    """

    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, max_positions: int | None = None, signed: bool = False, scale: float = 1.0):
        super().__init__(geometry, max_positions)
        self.signed, self.scale, self.digits = flag("signed", signed), positive("scale", scale), max(1, (self.rows - 1).bit_length())
        if self.digits > geometry.hidden_size:
            raise ValueError(f"max_positions={self.rows} takes {self.digits} binary digits, but hidden_size is {geometry.hidden_size}")

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        digits = (pos[..., None] >> torch.arange(self.digits, device=pos.device)) & 1
        return add_to_first(x, self.scale * precise(2 * digits - 1 if self.signed else digits, x))
