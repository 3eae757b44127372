from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, PositionalEncoding, register
from ..options import LONGEST_TABLE, count, flag
from .shaw import RelativeVectors


@register("nezha")
class NEZHA(RelativeVectors):
    """Relative vectors that are sinusoids (Wei et al., 2019, arXiv:1909.00204, section 2.1).

    score(i, j) = q_i (k_j + a[min(i - j, K)]) / sqrt(D), and token i attends to the values v_j + a[min(i - j, K)], with
    a[t]_2k = sin((K - t) f_k), a[t]_2k+1 = cos((K - t) f_k) and f_k = 10000^(-2k/D): `shaw` without anything to learn.

    Args:
        max_distance: K in tokens; all greater distances share the last vector.
        values: whether the values have them too.

    Needs training. Differs from the paper: the sinusoids are those of the authors' code, which counts from the farthest key, where the
    paper takes those of j - i.
    """

    def __init__(self, geometry: Geometry, *, max_distance: int = 64, values: bool = True):
        super().__init__(geometry)
        self.max_distance = count("max_distance", max_distance, at_most=LONGEST_TABLE)
        self.values = flag("values", values)
        if not self.values:
            self.__class__ = KeysAlone

    def reset_buffers(self) -> None:
        self.set_buffer("table", self._waves(self.geometry.head_dim))
        if self.values:
            self.set_buffer("value_table", self._waves(self.geometry.value_dim))

    def _waves(self, width: int) -> Tensor:
        """The vectors of all distances: [K+1,width]."""
        inv_freq = 10_000.0 ** (-torch.arange(0, width, 2).float() / width)
        angle = torch.arange(self.max_distance, -1, -1)[:, None] * inv_freq
        return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[:, :width]


class KeysAlone(NEZHA):
    """Without vectors for the values, as `shaw` can be."""

    attended = PositionalEncoding.attended  # type: ignore[assignment]
