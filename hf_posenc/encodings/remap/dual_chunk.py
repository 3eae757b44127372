from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, Region, register
from ..options import count
from .base import RemappedRoPE


@register("dual_chunk")
class DualChunk(RemappedRoPE):
    """Dual chunk attention, DCA (An et al., 2024, arXiv:2402.17463, section 3).

    Key j is at j mod s. Query i is at i mod s for keys of its own chunk of s tokens, at min(i mod s + s, c - 1) for those of
    the chunk before, and at c - 1 for all earlier ones. The last w = c - s tokens always look as far as they are.

    Args:
        chunk: s in tokens; default 3/4 of the native context L, or L - w where that is less.
        window: w in tokens; default L - s, so that c is L.

    Works without training. Differs from the authors' code: s, w and the last position c - 1 are those of the paper, where the
    code has chunks of less than 3/4 L and a last position c; no factor on cos and sin.
    """

    def __init__(self, geometry: Geometry, *, chunk: int | None = None, window: int | None = None):
        super().__init__(geometry)
        length = geometry.max_positions
        given = 0 if window is None else count("window", window)
        self.chunk = max(1, min(length * 3 // 4, length - given)) if chunk is None else count("chunk", chunk)
        self.window = given or max(1, length - self.chunk)
        if self.chunk + self.window > max(length, 2):
            raise ValueError(
                f"chunk + window must stay within the native context of {length} tokens, got {self.chunk} + {self.window}. "
                f"Give one of them, below {length}, and the other follows."
            )

    def stored(self, pos: Tensor) -> Tensor:
        return pos % self.chunk

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        s, last = self.chunk, self.chunk + self.window - 1
        return [
            Region(self.turn(self.stored), keys=lambda q: (q - q % s, q + 1)),
            Region(self.turn(lambda i: (i % s + s).clamp(max=last)), keys=lambda q: (q - q % s - s, q - q % s)),
            Region(self.turn(lambda i: torch.full_like(i, last)), keys=lambda q: (torch.zeros_like(q), q - q % s - s)),
        ]
