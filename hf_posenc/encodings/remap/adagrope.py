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

    caches = "raw"

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

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        ends = [back for back, _ in self.bands.values()][1:]
        bands = zip(self.bands.items(), [*ends, self.length], strict=True)
        return [self._region(uses, back, at, end) for (uses, (back, at)), end in bands]

    def _region(self, uses: int, back: int, at: int, end: int) -> Region:
        def queries(i: Tensor) -> Tensor:
            return (i - back) // uses + at

        def keys(j: Tensor) -> Tensor:
            return j // uses

        return Region(self.turn(queries, keys), keys=lambda q: ((q - end + 1).clamp(min=0), q - back + 1))
