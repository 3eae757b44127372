"""What the encodings share that keep the model's RoPE and change the positions it is given."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..base import Geometry, PositionalEncoding, precise, widest
from ..rotary.rope import Place, RoPE, cos_sin, once, turn_pairs


def own(pos: Tensor) -> Tensor:
    """The `Place` that is the token's own position."""
    return pos


class RemappedRoPE(PositionalEncoding):
    """The model's own RoPE, its scaling included, at positions that depend on the region.

    A key is turned once, to `stored` of its position, and stays so in the KV cache; most regions then turn only queries.
    """

    rotary = True

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        self.base = RoPE(geometry)

    def reset_buffers(self) -> None:
        self.base.reset_buffers()

    def stored(self, pos: Tensor) -> Tensor:
        """The `Place` of keys in the cache."""
        return pos

    def cached_key(self, k: Tensor, pos: Tensor) -> Tensor:
        return self.base.rotate_one(k, pos, place=self.stored)

    def sharpening(self, pos: Tensor) -> Tensor | None:
        """Factor on the scores of queries at `pos`, in float32 at least and of any shape; None for none."""
        return None

    def query(self, q: Tensor, q_pos: Tensor, place: Place) -> Tensor:
        """Queries [B,H,Q,D] of tokens at `q_pos` [B,Q], turned to `place` of it and sharpened."""
        turned = self.base.rotate_one(q, q_pos, place=place)
        factor = once(q_pos, (self, q.dtype), lambda: self.sharpening(precise(q_pos, q)))
        return turned if factor is None else turned * factor[:, None, :, None].to(q.dtype)

    def key(self, k: Tensor, k_pos: Tensor, place: Place) -> Tensor:
        """Keys [B,G,K,D] of tokens at `k_pos` [B,K] as the cache holds them, turned on to `place` of it."""
        if not k.shape[2]:
            return k

        def turns() -> tuple[Tensor, Tensor]:
            pos = k_pos.to(widest(k_pos.device))
            return cos_sin(place(pos) - self.stored(pos), self.base.inv_freq, 1.0, k)

        cos, sin = once(k_pos, (self, place, k.dtype), turns)
        return turn_pairs(k, cos, sin, self.geometry)

    def turn(self, queries: Place, keys: Place | None = None) -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The `rotate` of a region with queries and keys at these places; without `keys` they stay as the cache holds them."""

        def rotate(q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
            return self.query(q, q_pos, queries), k if keys is None else self.key(k, k_pos, keys)

        return rotate
