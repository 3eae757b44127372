from __future__ import annotations

import torch

from ..base import Geometry, register
from ..options import count
from .shaw import RelativeKeys

SCALES = 8
REACH = 7
"""Widths after which a wavelet is nothing: there (1 - t^2) exp(-t^2 / 2) is 1e-9."""


@register("wavelet_pe")
class WaveletPE(RelativeKeys):
    """Wavelets of the distance (Oka et al., 2025, arXiv:2502.02004), in the place of Shaw's vectors.

    score(i, j) = q_i (k_j + p(i - j)) / sqrt(D), with p_d(t) = psi((t - b) / a) / sqrt(a) and the Ricker wavelet
    psi(t) = (1 - t^2) exp(-t^2 / 2): each dimension d has a scale a of 1, 2, 4 ... and a shift b of 0, 1, 2 ... of its own.

    Args:
        scales: how many there are, by default 8 or D, whichever is less; the shifts are as many as make D with them.

    No parameters, yet the queries have to learn what to make of p: needs training. No code of the authors was found; the scales and
    shifts, and the factor 1 / sqrt(a), follow descriptions of the paper.
    """

    def __init__(self, geometry: Geometry, *, scales: int | None = None):
        super().__init__(geometry)
        self.scales = count("scales", min(SCALES, geometry.head_dim) if scales is None else scales, at_most=min(geometry.head_dim, 16))

    def reset_buffers(self) -> None:
        width = self.geometry.head_dim
        shifts = -(-width // self.scales)
        a, b = torch.tensor([(2.0 ** (d // shifts), d % shifts) for d in range(width)]).T
        last = shifts + REACH * 2 ** ((width - 1) // shifts)
        t = (torch.arange(last)[:, None] - b) / a
        waves = (1 - t**2) * torch.exp(-(t**2) / 2) / a.sqrt()
        self.set_buffer("table", torch.cat((waves, torch.zeros_like(waves[:1]))))  # beyond all of them
