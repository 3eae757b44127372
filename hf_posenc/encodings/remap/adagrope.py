from __future__ import annotations

from torch import Tensor

from ..base import Geometry, Region, register
from ..options import count, positive
from .base import ExtendedRoPE


@register("adagrope")
class AdaGroPE(ExtendedRoPE):
    """AdaGroPE, distances used again the more often the farther they are (Xu et al., 2025, ACL long 28, algorithm 1).

    N tokens have P distances: floor(r P) are used once, floor(r P / 2) twice, floor(r P / 4) four times, and so on; the rest n or
    n - 1 times, the farthest n times, with the smallest n for which that is enough. In the band that begins a tokens back, at
    distance p, and uses each u times, key j looks p + floor((i - a) / u) - floor(j / u) tokens away.

    Args:
        factor: N over the native context L; default 4 where no target is given.
        target_length: N in tokens, instead of `factor`; a position beyond is an error.
        positions: P, at most L; default L, the authors' choice for perplexity. For other tasks they take L / 2, or L / 4 if texts are
            hardly longer than L.
        ratio: r, at most 1/2.

    Works without training. Differs from the paper: there the distance of a band is p + floor((i - j - a) / u), which no rotations of
    queries and keys make; here the groups lie at fixed places of the text, as in SelfExtend, and some keys look one token farther.
    And N is given, where the paper takes the length of the text.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        factor: float | None = None,
        target_length: int | None = None,
        positions: int | None = None,
        ratio: float = 0.25,
    ):
        super().__init__(geometry)
        self.length = self.target(factor, target_length)
        self.positions = self.native_length if positions is None else count("positions", positions, at_most=self.native_length)
        self.ratio = positive("ratio", ratio, at_most=0.5)
        self.bands = self._bands()
        starts = [back for back, _ in self.bands.values()]
        self.ends = dict(zip(self.bands, [*starts[1:], self.length], strict=True))
        self.common = max(self.bands, key=lambda uses: self.ends[uses] - self.bands[uses][0])

    def _bands(self) -> dict[int, tuple[int, int]]:
        """By u, the nearest first: where a band begins, a and p."""
        bands: dict[int, tuple[int, int]] = {}
        back = at = 0
        uses = 1
        while back + (self.positions - at) * uses < self.length:
            kept = int(self.ratio * self.positions / uses) if uses.bit_count() == 1 else 0
            if kept:
                bands[uses] = back, at
            back, at, uses = back + kept * uses, at + kept, uses + 1
        fewer = back + (self.positions - at) * uses - self.length
        if fewer and uses > 1:
            bands.setdefault(uses - 1, (back, at))
            back, at = back + fewer * (uses - 1), at + fewer
        bands[uses] = back, at
        return bands

    @property
    def context_length(self) -> int:
        return self.length

    def stored(self, pos: Tensor) -> Tensor:
        return pos // self.common

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        return [self._region(uses, back, at) for uses, (back, at) in self.bands.items()]

    def _region(self, uses: int, back: int, at: int) -> Region:
        turned = self.turn(lambda i: (i - back) // uses + at, None if uses == self.common else lambda j: j // uses)
        return Region(turned, keys=lambda q: ((q - self.ends[uses] + 1).clamp(min=0), q - back + 1))
