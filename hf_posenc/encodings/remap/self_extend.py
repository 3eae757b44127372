from __future__ import annotations

import math

from torch import Tensor

from ..base import Geometry, Region, register
from ..options import count, flag
from .base import ExtendedRoPE, own, windowed


@register("self_extend")
class SelfExtend(ExtendedRoPE):
    """SelfExtend, grouped attention beyond a window (Jin et al., 2024, arXiv:2401.01325, section 3).

    A key fewer than W tokens back looks as far as it is; key j beyond looks floor(i / G) - floor(j / G) + W - floor(W / G)
    tokens away. Distances stay within the native context L up to G (L - W + floor(W / G)) tokens, which is (L - W) G + W
    where G divides W; a position beyond is an error.

    Args:
        factor: target context over native context, from which G is chosen; default 4 where neither G nor a target is given.
        target_length: target context N in tokens, instead of `factor`.
        group: G in tokens, instead of a target; default the smallest that keeps W + (N - W) / G within 2/3 L, the authors'
            rule of thumb.
        window: W in tokens, less than L; default L / 4.
        authors_code: W - W / G with its fraction, as in the authors' code.

    Works without training. Differs from the authors' code, unless it is asked for: floor(W / G), as in the paper, where they keep
    the fraction; their flash attention drops it again when it decodes.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        factor: float | None = None,
        target_length: int | None = None,
        group: int | None = None,
        window: int | None = None,
        authors_code: bool = False,
    ):
        super().__init__(geometry)
        self.window = self.window_within(window)
        self.authors_code = flag("authors_code", authors_code)
        target = self.target(factor, target_length, group=group)
        self.group = count("group", group) if group is not None else self._smallest(target)

    def _smallest(self, target: int) -> int:
        native = self.native_length
        room = 2 * native - 3 * self.window
        if room < 1:
            raise ValueError(
                f"window = {self.window} leaves no distances for groups within 2/3 of the native context of {native} tokens. "
                f"Use a window of at most {(2 * native - 1) // 3}, or give group= yourself."
            )
        return math.ceil(3 * (target - self.window) / room)

    @property
    def context_length(self) -> int:
        return self.group * (self.native_length - self.window + self.window // self.group)

    def remedy(self, length: int) -> str:
        window = self.native_length - math.ceil(length / self.group)
        or_window = f" or window = {window}" if window > 0 else ""
        return f"Use group = {math.ceil(length / (self.native_length - self.window))}{or_window}"

    def stored(self, pos: Tensor) -> Tensor:
        return pos // self.group

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        shift = self.window - (self.window / self.group if self.authors_code else self.window // self.group)
        return windowed(self.window, near=self.turn(own, own), far=self.turn(lambda i: self.stored(i) + shift))
