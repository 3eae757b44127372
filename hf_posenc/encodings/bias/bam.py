from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import flag
from .alibi import native_slopes

EPS = 1e-5


@register("bam")
class BAM(PositionalEncoding):
    """Bayesian attention mechanism (Bianchessi et al., 2025, arXiv:2505.22842, section 4).

    score(i, j) = q_i k_j / sqrt(D) - a_h (|i - j + c_h| + 1e-5)^b_h: the logarithm of a generalised Gaussian prior of distances, with
    a (at first ALiBi's slopes, or the model's own) and b (at first 1) learned for each head and shared by all layers.

    Args:
        location: learn c too, as 2 sinh(t) with t at first 0; otherwise c is 0.

    Needs training; starts as ALiBi. Differs from the paper: its softmax with a length-dependent temperature (SSMax) is a matter of its own.
    """

    relative = True
    needs_training = "pretraining or fine-tuning"
    starts_as = "alibi"

    def __init__(self, geometry: Geometry, *, location: bool = False):
        super().__init__(geometry)
        slopes = native_slopes(geometry)
        self.log_scale, self.shape = nn.Parameter(slopes.log()), nn.Parameter(torch.ones_like(slopes))
        self.location = nn.Parameter(torch.zeros_like(slopes)) if flag("location", location) else None

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        away = precise(q_pos - k_pos, q_pos)
        if self.location is not None:
            away = away + 2 * precise(self.location, q_pos)[h].sinh()
        scale, shape = precise(self.log_scale, q_pos)[h].exp(), precise(self.shape, q_pos)[h]
        return -scale * (away.abs() + EPS) ** shape
