from __future__ import annotations

import torch
from torch import Tensor

from ..base import Block, Geometry, precise, register
from ..options import FARTHEST, positive
from ..rotary.p_rope import PRoPE
from .shaw import distances


@register("scale_invariant")
class ScaleInvariant(PRoPE):
    """Scale-invariant attention (Anson et al., 2025, arXiv:2505.17083, section 3).

    score(i, j) = a s_ij - l, with l = 2 log(1 + (i - j) / tau), a = sqrt(1 + l) and s the score under `p_rope`: each range of distances
    from t to 2 t then has about the same part of the attention, on ever fewer of its tokens.

    Args:
        tau: tokens within which little changes.
        p: fraction of the rotated pairs that turn.

    Needs training. Differs from the paper: scores are taken as they are, where it has norms that give them the variance 1.
    """

    def __init__(self, geometry: Geometry, *, tau: float = 10.0, p: float = 0.75):
        super().__init__(geometry, p=p)
        self.tau = positive("tau", tau, at_most=FARTHEST)

    def mix(self, scores: Tensor, block: Block) -> Tensor:
        distance = precise(distances(block.q_pos, block.k_pos, FARTHEST), scores)
        less = 2 * torch.log1p(distance / self.tau)
        return (scores * (1 + less).sqrt() - less).to(scores.dtype)

    def frequencies(self) -> None:
        return None

    def rope_parameters(self) -> None:
        return None
