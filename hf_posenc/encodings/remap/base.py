"""What the encodings share that keep the model's RoPE and change the positions it is given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..base import Geometry, PositionalEncoding, Region, precise, widest
from ..options import count
from ..rotary.rope import Place, RoPE, cos_sin, once, turn_pairs
from ..rotary.scaling import stretch

Rotate = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""As in `Region`."""


def own(pos: Tensor) -> Tensor:
    """The `Place` that is the token's own position."""
    return pos


def windowed(window: int, *, near: Rotate, far: Rotate) -> list[Region]:
    """Keys fewer than `window` tokens back, and all before them."""
    return [
        Region(near, keys=lambda q: (q - window + 1, q + 1)),
        Region(far, keys=lambda q: (torch.zeros_like(q), q - window + 1)),
    ]


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

    def turn(self, queries: Place, keys: Place | None = None) -> Rotate:
        """The `rotate` of a region with queries and keys at these places; without `keys` they stay as the cache holds them."""

        def rotate(q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
            return self.query(q, q_pos, queries), k if keys is None else self.key(k, k_pos, keys)

        return rotate


class ExtendedRoPE(RemappedRoPE):
    """A remap whose distances stay within the native context L up to `context_length` tokens; a position beyond is an error."""

    any_length = False

    @property
    def native_length(self) -> int:
        """L in tokens."""
        return self.geometry.max_positions

    @property
    def context_length(self) -> int:
        raise NotImplementedError

    def window_within(self, window: int | None) -> int:
        """The option `window` in tokens, less than L; default L / 4."""
        window = max(1, self.native_length // 4) if window is None else count("window", window)
        if window >= self.native_length:
            raise ValueError(f"window must be less than the native context of {self.native_length} tokens, got {window}")
        return window

    def target(self, factor: float | None, target_length: int | None, **instead: object) -> int:
        """The context in tokens to reach, from either of its two spellings; 4 L where neither is given.

        Args:
            instead: an option that says by itself how far to reach, and its value.

        Raises:
            ValueError: a target is given beside it.
        """
        targeted = factor is not None or target_length is not None
        for option, given in instead.items():
            if given is not None and targeted:
                raise ValueError(f"{self.name!r} takes either {option}=, or factor= or target_length= to choose it by")
        return round(self.native_length * stretch(self.name, self.native_length, factor if targeted else 4.0, target_length))

    def check_positions(self, last: int) -> None:
        if last >= self.context_length:
            raise ValueError(
                f"position {last} lies past the {self.context_length} tokens that {self.name!r} reaches here. "
                f"{self.remedy(last + 1)}, or shorten the input."
            )

    def remedy(self, length: int) -> str:
        """What to do to reach `length` tokens."""
        return f"Use target_length = {length}"
