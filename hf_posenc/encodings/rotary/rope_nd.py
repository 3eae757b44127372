from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Block, Geometry, PositionalEncoding, precise, register, widest
from ..options import count, one_of
from .rope import RoPE, cos_sin, power_frequencies, turn_pairs

LAYOUTS = ("interleaved", "axial", "mixed")


class Axial(RoPE):
    """The frequencies of one narrow RoPE for each axis, one after the other."""

    def __init__(self, geometry: Geometry, axes: int):
        super().__init__(geometry)
        self.number = axes

    def inverse_frequencies(self) -> Tensor:
        return power_frequencies(self.theta, self.dim // self.number).repeat(self.number)


class OnAxes(PositionalEncoding):
    """The model's own RoPE where each pair of dimensions turns with one of several axes of the positions: `pairs` says with which."""

    rotary = True
    relative = True
    needs_training = "fine-tuning for positions on several axes; text alone needs none"
    pairs: Tensor

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        self.base = RoPE(geometry)

    @property
    def num_pairs(self) -> int:
        return self.geometry.rotary_dim // 2

    def axis_of_pairs(self) -> Tensor:
        """The axis of each pair, [r/2] integers."""
        raise NotImplementedError

    def reset_buffers(self) -> None:
        self.base.reset_buffers()
        self.set_buffer("pairs", self.axis_of_pairs())

    def cached_key(self, k: Tensor, pos: Tensor) -> Tensor:
        return self.turn(k, pos)

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        return self.turn(block.q, cast(Tensor, block.axes)), block.k

    def turn(self, x: Tensor, pos: Tensor) -> Tensor:
        """x [B,H,T,D], turned to the positions [n,1 or B,T]."""
        each = pos.movedim(0, -1)[..., self.pairs]
        return turn_pairs(x, *cos_sin(each, self.base.inv_freq, self.base.attention_factor, x), self.geometry)

    def turn_along(self, x: Tensor, pos: Tensor, shares: Tensor) -> Tensor:
        """The same where pair k of key-value head g turns by its frequency times the sum over the axes of shares [G,n,k] * positions."""
        wide = widest(x.device)
        angle = torch.einsum("nbt,gnk->bgtk", pos.to(wide), (shares * self.base.inv_freq).to(wide))
        cos, sin = (precise(part, x) * self.base.attention_factor for part in (angle.cos(), angle.sin()))
        return turn_pairs(x, cos, sin, self.geometry)


@register("rope_nd")
class RoPEND(OnAxes):
    """Rotary position embedding on several axes (Su et al., 2021, arXiv:2104.09864; Heo et al., 2024, arXiv:2403.13298, section 3.1).

    Each pair of dimensions turns with the position on one axis. Positions come as `position_ids` of [axes, batch, tokens]; text alone, with
    [batch, tokens], has the same on all.

    Args:
        axes: their number n.
        layout: "interleaved": pair k has axis k mod n and keeps the frequency that it has in the model, so that text alone gives the
            numbers of `rope`, bit for bit; "axial": the pairs fall into n equal parts, each with the frequencies theta^(-2kn/r) of a
            RoPE that is as narrow, as in image models; or "mixed": each pair turns with all axes, by f_k times the sum over the axes of
            s_a p_a, with learned s for each layer and key-value head, that start as those of "interleaved".

    Works at once on text, but for "axial"; needs fine-tuning otherwise. Differs from the authors' code: what is learned starts as the
    model's own RoPE, where theirs has random directions in the plane, theta = 10, and one set a query head.
    """

    def __init__(self, geometry: Geometry, *, axes: int = 2, layout: str = "interleaved"):
        super().__init__(geometry)
        self.axes = count("axes", axes, at_least=2, at_most=max(2, self.num_pairs))
        self.layout = one_of("layout", layout, LAYOUTS)
        if self.num_pairs % self.axes and self.layout == "axial":
            raise ValueError(f"axes = {axes} do not divide the {self.num_pairs} pairs of a head evenly: use layout = 'interleaved'")
        if self.layout == "axial" and geometry.frequencies is not None:
            raise ValueError("layout = 'axial' has frequencies of its own, and this model has scaled ones: use layout = 'interleaved'")
        if self.layout == "axial":
            self.base = Axial(geometry, self.axes)
        self.starts_as = "" if self.layout == "axial" else "rope"
        self.per_layer = self.layout == "mixed"
        if self.per_layer:
            self.share = nn.Parameter(torch.zeros(geometry.num_kv_heads, self.axes, self.num_pairs))

    def axis_of_pairs(self) -> Tensor:
        pairs = torch.arange(self.num_pairs)
        return pairs * self.axes // self.num_pairs if self.layout == "axial" else pairs % self.axes

    def turn(self, x: Tensor, pos: Tensor) -> Tensor:
        if self.layout != "mixed":
            return super().turn(x, pos)
        return self.turn_along(x, pos, precise(self.share, x) + F.one_hot(self.pairs, self.axes).mT)
