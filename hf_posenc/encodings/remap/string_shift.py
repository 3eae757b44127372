from __future__ import annotations

import math

from torch import Tensor

from ..base import Geometry, Region, register
from ..options import count, flag, positive
from .base import RemappedRoPE, own, windowed


@register("string_shift")
class ShiftedRoPE(RemappedRoPE):
    """STRING, shifted rotary position embedding (An et al., 2024, arXiv:2410.18745, section 4).

    A key d >= S tokens back looks d - S + W tokens away, so that the rarely trained large distances are replaced by
    well-trained smaller ones. Distances stay within the native context L up to L + S - W tokens.

    Args:
        shift: S in tokens; default L / 3.
        window: W in tokens, the distance at which shifted keys begin, at most S; default 128, or half of S where that is less.
        attention_factor: factor on cos and sin, so that its square sharpens the scores of all keys; default 1, as in the paper.
        authors_code: the defaults of the authors' code, and so of their results: S = 0.33 L, and an `attention_factor` of
            0.1 ln 2 + 1 = 1.0693 at every length.

    Works without training. Differs from the authors' code, unless it is asked for: no factor, and S = L / 3. And when it reads a
    text, its two windows overlap by one, and key i - S is attended to twice, S and W tokens away; when it decodes they do not.
    """

    relative = True

    def __init__(
        self,
        geometry: Geometry,
        *,
        shift: int | None = None,
        window: int | None = None,
        attention_factor: float | None = None,
        authors_code: bool = False,
    ):
        super().__init__(geometry)
        theirs, native = flag("authors_code", authors_code), geometry.max_positions
        self.shift = max(1, int(0.33 * native) if theirs else native // 3) if shift is None else count("shift", shift)
        self.window = max(1, min(128, self.shift // 2)) if window is None else count("window", window)
        if self.window > self.shift:
            raise ValueError(f"window must be at most shift = {self.shift}, got {self.window}: a shift brings keys nearer")
        default = 0.1 * math.log(2) + 1 if theirs else 1.0
        self.base.attention_factor *= default if attention_factor is None else positive("attention_factor", attention_factor)

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        return windowed(self.shift, near=self.turn(own), far=self.turn(lambda i: i - self.shift + self.window))
