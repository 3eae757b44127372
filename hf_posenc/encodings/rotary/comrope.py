from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, precise, register
from ..options import one_of
from .generators import Generated, skew

FORMS = ("axial", "linear")


@register("comrope")
class ComRoPE(Generated):
    """Commuting rotary position embedding (Yu et al., 2025, arXiv:2506.03737, section 4; Longin-Yu/ComRoPE).

    As `liere`, but the generators of the axes commute, so that the score depends on positions through p_i - p_j alone: each block has a
    learned skew-symmetric A of each layer and key-value head, and A_a is A in the blocks of axis a and 0 elsewhere (ComRoPE-AP, where
    block k has axis k mod n), or c_a A with a learned c for each block (ComRoPE-LD).

    Args:
        axes: their number n.
        block: b; default 8, or less where the rotated width is no multiple of 8.
        form: "axial", for axial partition, or "linear", for linear dependence.

    Works at once on text; needs fine-tuning for several axes. Differs from the authors' code: A starts as the model's RoPE and c as 1/n,
    where theirs are normal; positions are in tokens and not perturbed; the blocks need not divide evenly among the axes; c is learned for
    each layer and key-value head; heads that share a key share A.
    """

    def __init__(self, geometry: Geometry, *, axes: int = 2, block: int | None = None, form: str = "axial"):
        super().__init__(geometry, axes, block)
        self.form, groups = one_of("form", form, FORMS), geometry.num_kv_heads
        blocks, entries = geometry.rotary_dim // self.width, self.width * (self.width - 1) // 2
        self.upper = nn.Parameter(torch.zeros(groups, blocks, entries))
        if form == "linear":
            self.share = nn.Parameter(torch.zeros(self.axes, groups, blocks))

    def axis_of_blocks(self, device: torch.device | None = None) -> Tensor:
        """The axis of each block, [r/b] integers."""
        return torch.arange(self.geometry.rotary_dim // self.width, device=device) % self.axes

    def axis_of_pairs(self) -> Tensor:
        return self.axis_of_blocks().repeat_interleave(self.width // 2)

    def generators(self, like: Tensor) -> Tensor:
        whole = precise(self.start, like).sum(0) + skew(precise(self.upper, like), self.width)
        if self.form == "linear":
            shares = precise(self.share, like) + 1 / self.axes
        else:
            shares = self.axis_of_blocks(like.device) == torch.arange(self.axes, device=like.device)[:, None, None]
        return shares[..., None, None] * whole
