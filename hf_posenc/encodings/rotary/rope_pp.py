from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import flag
from .rope import RoPE, turn_pairs


@register("rope_pp")
class RoPEPP(RoPE):
    """RoPE++, with heads for the imaginary part (Liu et al., 2025, arXiv:2512.07525, section 3; OpenMOSS/rope_pp).

    With s = sum over pairs of q_i conj(k_j) exp(i theta_n (i - j)), heads 0, 2, 4 ... score Re s, as in RoPE, and heads 1, 3, 5 ... its
    imaginary part: that of RoPE for a query turned back by a right angle. Keys, and so the KV cache, are those of RoPE.

    Args:
        shared: heads 2n and 2n + 1 have one query, that of head 2n: the paper's, where each query and key make a real head and an imaginary
            one. What the model projects for the queries of the odd heads is then not used.

    Needs pretraining: half of the heads of a trained model compute something else. Differs from the paper: it changes how many heads there
    are; here a model has those that it was built with. RoPE++_EC is a model with twice the query heads and `shared=True`, RoPE++_EH one
    with half of the key-value heads too. Without `shared` it is the mode "imagx" of the authors' code.
    """

    needs_training = "pretraining"

    def __init__(self, geometry: Geometry, *, shared: bool = False):
        super().__init__(geometry)
        self.shared = flag("shared", shared)
        if geometry.num_heads % 2 or (shared and geometry.num_heads // geometry.num_kv_heads % 2):
            of = " that share a key" if shared and not geometry.num_heads % 2 else ""
            raise ValueError(f"rope_pp takes heads{of} two by two, a real one and an imaginary one, and their number is odd in this model")

    def rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        return super().rotate(self._both(q) if q.shape[2] else q, k, q_pos, k_pos)

    def _both(self, q: Tensor) -> Tensor:
        """Queries [B,H,Q,D], of which those of odd heads, or those before them, are turned back by a right angle."""
        still = q.new_zeros(1, 1, 1, self.dim // 2)
        imaginary = turn_pairs(q[:, 0 if self.shared else 1 :: 2], still, still - 1, self.geometry)
        return torch.stack((q[:, ::2], imaginary), 2).flatten(1, 2)

    def frequencies(self) -> None:
        return None

    def rope_parameters(self):
        return None
