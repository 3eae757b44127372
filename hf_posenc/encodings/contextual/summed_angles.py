"""What the rotations share whose angles are sums over the tokens of a text."""

from __future__ import annotations

from torch import Tensor

from ..base import Block, Geometry, PositionalEncoding, precise
from ..rotary.rope import turn_pairs


class SummedAngles(PositionalEncoding):
    """Pair n of a token is turned by what all tokens up to it, or before it, add up to (`increments`), or by `angles` made of that."""

    relative = True
    rotary = True
    per_layer = True
    caches = "raw"
    factor: float = 1.0
    """On cosines and sines."""

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        if geometry.rotary_dim % 2:
            width = geometry.rotary_dim
            raise ValueError(f"{self.name} turns pairs of dimensions, but the rotated width is odd: {width}. Use an even head_dim.")

    def angles(self, sums: Tensor) -> Tensor:
        """In radians, [B,A,T,r/2], of sums [B,A,T,m]."""
        return sums

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        assert block.q_state is not None and block.k_state is not None
        start = block.k_state[:, :, -1:]  # sums may begin anywhere: small angles are exacter
        return self._turn(block.q, block.q_state - start), self._turn(block.k, block.k_state - start)

    def _turn(self, x: Tensor, sums: Tensor) -> Tensor:
        """x [B,A,T,D], its pairs turned by the angles of `sums`."""
        angle = self.angles(sums)
        return turn_pairs(x, precise(angle.cos(), x) * self.factor, precise(angle.sin(), x) * self.factor, self.geometry)
