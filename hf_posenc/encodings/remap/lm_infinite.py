from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, Region, register
from ..options import count
from .base import RemappedRoPE, own


@register("lm_infinite")
class LMInfinite(RemappedRoPE):
    """LM-Infinite, a Lambda-shaped mask with a distance limit (Han et al., 2023, arXiv:2308.16137, section 4).

    A query sees the first n tokens of the text and the last w, itself among them; a key d tokens back looks min(d, w)
    tokens away.

    Args:
        sinks: n in tokens, n_global in the paper, where 10 to 100 do alike; 0 leaves a sliding window.
        window: w in tokens, n_local and the distance limit in the paper; default the native context.

    Works without training. Differs from the paper: hidden keys stay in the KV cache; none of them are attended to again
    by their scores, which the paper offers for retrieval.
    """

    def __init__(self, geometry: Geometry, *, sinks: int = 10, window: int | None = None):
        super().__init__(geometry)
        self.sinks = count("sinks", sinks, 0)
        self.window = geometry.max_positions if window is None else count("window", window)

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        limit = self.turn(lambda i: torch.full_like(i, self.window), torch.zeros_like)
        return [
            Region(self.turn(own), keys=lambda q: (q - self.window + 1, q + 1)),
            Region(limit, keys=lambda q: (torch.zeros_like(q), (q - self.window + 1).clamp(max=self.sinks))),
        ]
