from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import LARGEST, count, number, positive


@register("expe")
class ExPE(PositionalEncoding):
    """Exact positional embeddings (Datseris et al., 2025, arXiv:2509.19569): the position itself, in dimensions of its own.

    x_t,k -> start + step t for the first `dims` dimensions k, in the place of what they held; the others stay.

    Args:
        start: number of the first position.
        step: from one position to the next. It counts beyond the trained length as within.
        dims: dimensions that hold it.

    Needs training: what those dimensions held is lost. The paper's start, step and number of dimensions were not at hand, nor its code;
    the defaults are ours. In half precision the number is rounded: bfloat16 keeps 256 steps apart, float16 2048.
    """

    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, start: float = 0.0, step: float = 0.01, dims: int = 8):
        super().__init__(geometry)
        self.start, self.step = number("start", start, -LARGEST, LARGEST), positive("step", step)
        self.dims = count("dims", dims, at_most=geometry.hidden_size - 1)

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        place = self.start + self.step * precise(pos, x)[..., None].expand(*pos.shape, self.dims)
        return torch.cat((place.to(x.dtype), x[..., self.dims :]), -1)
