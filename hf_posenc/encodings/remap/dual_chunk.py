from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, Region, register
from ..options import count, flag
from .base import RemappedRoPE


@register("dual_chunk")
class DualChunk(RemappedRoPE):
    """Dual chunk attention, DCA (An et al., 2024, arXiv:2402.17463, section 3).

    Key j is at j mod s. Query i is at i mod s for keys of its own chunk of s tokens, at min(i mod s + s, c - 1) for those of
    the chunk before, and at c - 1 for all earlier ones. The last w = c - s tokens always look as far as they are.

    Args:
        chunk: s in tokens; default 3/4 of the native context L, or L - w where that is less.
        window: w in tokens; default L - s, so that c is L.
        authors_code: the numbers of the authors' code: w = L / 8 and s = 3/4 L - w, a last position of c, or 2 s - 1 where that is
            less, and a factor of 0.05 ln(T / L) + 1 on cos and sin for a text of T > L tokens (0.1 instead, and w = L / 16, in
            their file for flash decoding).

    Works without training. Differs from the authors' code, unless it is asked for: s, w and the last position are those of the
    paper, whose results are without the factor. Where it is asked for: T counts the tokens up to the query, as it does when
    they decode, not those of the whole text, and the factor is all on the query, where their cached keys keep older ones.
    """

    def __init__(self, geometry: Geometry, *, chunk: int | None = None, window: int | None = None, authors_code: bool = False):
        super().__init__(geometry)
        self.authors_code = flag("authors_code", authors_code)
        length = geometry.max_positions
        given = max(1, length // 8) if self.authors_code else 0
        given = given if window is None else count("window", window)
        room = length * 3 // 4 - given if self.authors_code else min(length * 3 // 4, length - given)
        self.chunk = max(1, room) if chunk is None else count("chunk", chunk)
        self.window = given or max(1, length - self.chunk)
        if self.chunk + self.window > max(length, 2):
            raise ValueError(
                f"chunk + window must stay within the native context of {length} tokens, got {self.chunk} + {self.window}. "
                f"Give one of them, below {length}, and the other follows."
            )

    def stored(self, pos: Tensor) -> Tensor:
        return pos % self.chunk

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        s, c = self.chunk, self.chunk + self.window
        last = min(c, 2 * s - 1) if self.authors_code else c - 1
        return [
            Region(self.turn(self.stored), keys=lambda q: (q - q % s, q + 1)),
            Region(self.turn(lambda i: (i % s + s).clamp(max=last)), keys=lambda q: (q - q % s - s, q - q % s)),
            Region(self.turn(lambda i: torch.full_like(i, last)), keys=lambda q: (torch.zeros_like(q), q - q % s - s)),
        ]

    def sharpening(self, pos: Tensor) -> Tensor | None:
        factor = 0.05 * torch.log((pos + 1) / self.geometry.max_positions) + 1
        return factor.clamp(min=1).square() if self.authors_code else None
