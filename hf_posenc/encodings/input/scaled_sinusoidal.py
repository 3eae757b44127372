from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, precise, register
from .sinusoidal import Sinusoidal


@register("scaled_sinusoidal")
class ScaledSinusoidal(Sinusoidal):
    """Sinusoidal positions with a learned scale (Li et al., 2018, arXiv:1809.08895; x-transformers).

    x_t -> x_t + c [sin(t f_k) | cos(t f_k)], with f_k = theta^(-2k/M) and c learned, at first M^(-1/2).

    Args:
        theta: base of the frequencies.

    Needs training. Differs from the paper, which is about speech: the layout and the first c are those of x-transformers.
    """

    def __init__(self, geometry: Geometry, *, theta: float = 10_000.0):
        super().__init__(geometry, theta=theta, layout="concatenated")
        self.factor = nn.Parameter(torch.full((1,), geometry.hidden_size**-0.5))

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        return x + (precise(self.factor, x) * self.wave(pos, x)).to(x.dtype)
