from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Geometry, Region, register
from ..options import count, flag
from ..rotary.scaling import stretch
from .base import RemappedRoPE, own


@register("self_extend")
class SelfExtend(RemappedRoPE):
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

    any_length = False

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
        self.window = max(1, geometry.max_positions // 4) if window is None else count("window", window)
        if self.window >= geometry.max_positions:
            raise ValueError(f"window must be less than the native context of {geometry.max_positions} tokens, got {self.window}")
        self.authors_code = flag("authors_code", authors_code)
        targeted = factor is not None or target_length is not None
        if group is not None and targeted:
            raise ValueError("'self_extend' takes either group=, or factor= or target_length= to choose it by")
        self.group = count("group", group) if group is not None else self._group(factor if targeted else 4.0, target_length)

    def _group(self, factor: float | None, target_length: int | None) -> int:
        native = self.geometry.max_positions
        target = round(native * stretch(self.name, native, factor, target_length))
        room = 2 * native - 3 * self.window
        if room < 1:
            raise ValueError(
                f"window = {self.window} leaves no distances for groups within 2/3 of the native context of {native} tokens. "
                f"Use a window of at most {(2 * native - 1) // 3}, or give group= yourself."
            )
        return math.ceil(3 * (target - self.window) / room)

    @property
    def context_length(self) -> int:
        return self.group * (self.geometry.max_positions - self.window + self.window // self.group)

    def check_positions(self, last: int) -> None:
        if last < self.context_length:
            return
        native = self.geometry.max_positions
        window = native - math.ceil((last + 1) / self.group)
        or_window = f" or window = {window}" if window > 0 else ""
        raise ValueError(
            f"position {last} lies past the {self.context_length} tokens that group = {self.group} and window = {self.window} "
            f"reach. Use group = {math.ceil((last + 1) / (native - self.window))}{or_window}, or shorten the input."
        )

    def stored(self, pos: Tensor) -> Tensor:
        return pos // self.group

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        shift = self.window - (self.window / self.group if self.authors_code else self.window // self.group)
        return [
            Region(self.turn(own, own), keys=lambda q: (q - self.window + 1, q + 1)),
            Region(self.turn(lambda i: self.stored(i) + shift), keys=lambda q: (torch.zeros_like(q), q - self.window + 1)),
        ]
