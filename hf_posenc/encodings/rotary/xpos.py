from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..base import Geometry, precise, register
from ..options import positive
from .by_length import RoPEByQuery
from .rope import cos_sin, exponents, turn_pairs

LARGEST_PART = 16.0
"""Of the two numbers that a decay is divided into: half precision has room for it in queries and keys."""


@register("xpos")
class XPos(RoPEByQuery):
    """xPos (Sun et al., 2022, arXiv:2212.10554, section 3.1; microsoft/torchscale): RoPE whose pairs decay with the distance.

    The term of pair k in the score of a query at i and a key at j is that of RoPE times zeta_k^((i - j) / scale_base), where
    zeta_k = (2k/r + gamma) / (1 + gamma), r the rotated width. It is told to the query as zeta_k^((i - c) / scale_base) and to the key as
    zeta_k^((c - j) / scale_base).

    Args:
        scale_base: tokens over which a pair decays to zeta_k.
        gamma: decay of the fastest pair; the more, the less pairs decay.

    Needs training. Differs from the authors' code: c lies near the query, keys being cached raw, so that decoding is what evaluation is and
    nothing overflows at any length; theirs is the middle of the text so far, and another one whenever a token is added. Without the
    paper's attention by blocks.
    """

    log_zeta: Tensor
    data_dependent = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, scale_base: float = 512.0, gamma: float = 0.4):
        super().__init__(geometry)
        self.scale_base, self.gamma = positive("scale_base", scale_base), positive("gamma", gamma)
        fastest = math.log1p(1 / self.gamma)
        self.reach = int(min(self.scale_base * math.log(LARGEST_PART) / fastest, 1e9))

    def reset_buffers(self) -> None:
        super().reset_buffers()
        self.set_buffer("log_zeta", torch.log((exponents(self.dim) + self.gamma) / (1 + self.gamma)))

    def rope_parameters(self):
        return None

    def changes(self, first: int, last: int) -> Iterable[int]:
        each = 2 * self.reach + 1
        return range(first + each, last + 1, each)

    def rotate_region(self, told: Tensor, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        return self._rotate_around(told + self.reach, q, k, q_pos, k_pos)

    def rotate_rows(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        return self._rotate_around(q_pos, q, k, q_pos, k_pos)

    def _rotate_around(self, c: Tensor, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Bounded, because there are tokens of other regions too, and keys that no query of this one sees."""
        ahead, behind = (q_pos - c).clamp(-self.reach, self.reach), (c - k_pos).clamp(min=-self.reach)
        return self._decayed(q, q_pos, ahead), self._decayed(k, k_pos, behind)

    def _decayed(self, x: Tensor, pos: Tensor, tokens: Tensor) -> Tensor:
        """x [B,H,T,D] at `pos` [B,T], turned and decayed by that many tokens, [B,T]."""
        decay = (precise(tokens, x)[:, None, :, None] / self.scale_base * precise(self.log_zeta, x)).exp()
        cos, sin = cos_sin(pos, self.inv_freq, self.attention_factor * decay, x)
        return turn_pairs(x, cos, sin, self.geometry)
