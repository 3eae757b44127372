from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, precise, register
from .generators import skew
from .rope_nd import RoPEND


@register("string_cayley")
class CayleySTRING(RoPEND):
    """Cayley-STRING (Schenck et al., 2025, arXiv:2502.02562, section 3).

    q_i, k_j -> R(p_i) P q_i, R(p_j) P k_j with the rotation R of `rope_nd` and P = (I - S) (I + S)^-1, orthogonal, where the
    skew-symmetric S is learned for each layer and key-value head: RoPE in a basis of its own. On one axis, or on text alone, that is no
    more than other projections of queries and keys; on several it is any separable encoding that depends on p_i - p_j alone.

    Args:
        axes: their number; positions come as `position_ids` of [axes, batch, tokens].

    Works at once on text; needs fine-tuning for several axes. Differs from the paper: pairs keep the frequencies that they have in the
    model; S starts at zero; heads that share a key share P. (No code of the authors is public.)
    """

    per_layer = True

    def __init__(self, geometry: Geometry, *, axes: int = 2):
        super().__init__(geometry, axes=axes)
        width = geometry.rotary_dim
        self.upper = nn.Parameter(torch.zeros(geometry.num_kv_heads, width * (width - 1) // 2))

    def basis(self, like: Tensor) -> Tensor:
        """P [G,r,r]."""
        s = skew(precise(self.upper, like), self.geometry.rotary_dim)
        one = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
        return torch.linalg.solve(one + s, one - s)

    def turn(self, x: Tensor, pos: Tensor) -> Tensor:
        g = self.geometry
        still = g.head_dim - g.rotary_dim
        start = still if g.rotates_last else 0
        before, turning, after = x.split((start, g.rotary_dim, still - start), -1)
        grouped = precise(turning, x).unflatten(1, (g.num_kv_heads, -1))
        changed = (grouped @ self.basis(x).mT[:, None]).flatten(1, 2).to(x.dtype)
        return super().turn(torch.cat((before, changed, after), -1), pos)
