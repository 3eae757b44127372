from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, Region, register
from ..options import count
from .base import RemappedRoPE, own


@register("streaming_llm")
class StreamingLLM(RemappedRoPE):
    """StreamingLLM, attention sinks and a rolling window (Xiao et al., 2023, arXiv:2309.17453, section 3.2).

    A query sees the first n tokens of the text and the last w, itself among them, and positions are places in that cache
    of n + w tokens: recent keys look as far as they are, and key j < n looks min(i, n + w - 1) - j tokens away.

    Args:
        sinks: n in tokens; 0 leaves a sliding window.
        window: w in tokens; default the native context less n.

    Works without training. Differs from the paper: hidden keys stay in the KV cache. Differs from the authors' evaluation of
    perplexity: there a token joins n + w others before the oldest goes, so that it sees w + 1 with itself; window = w + 1 does
    that here. Their generation makes room first, as here.
    """

    def __init__(self, geometry: Geometry, *, sinks: int = 4, window: int | None = None):
        super().__init__(geometry)
        self.sinks = count("sinks", sinks, 0)
        self.window = max(1, geometry.max_positions - self.sinks) if window is None else count("window", window)

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        sinks = self.turn(lambda i: i.clamp(max=self.sinks + self.window - 1))
        return [
            Region(self.turn(own), keys=lambda q: ((q - self.window + 1).clamp(min=self.sinks), q + 1)),
            Region(sinks, keys=lambda q: (torch.zeros_like(q), (q + 1).clamp(max=self.sinks))),
        ]
