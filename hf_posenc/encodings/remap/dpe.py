from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base import Geometry, Region, register
from ..options import count
from .base import RemappedRoPE, own, windowed


@register("dpe")
class DimensionWise(RemappedRoPE):
    """DPE, positions remapped by groups of dimensions (Lu et al., 2025, arXiv:2504.18857, and the authors' code).

    The pairs of dimensions fall into groups of neighbours, the fastest first, each with a scale s. A key fewer than W tokens back
    looks as far as it is; to the pairs of a group, key j beyond looks floor(i / s) - floor(j / s) + W - W / s tokens away, so that
    each group meets the distances that it makes the best of.

    Args:
        scales: s of each group, whole numbers; of n groups, pair k of r/2 is in group floor(k n / (r/2)). Default those that the
            authors found for Llama-3-8B-Instruct at 16 times its length. For another model they start from 2 N / L in all groups, L
            being the native context, vary one at a time, and count the needles found in N tokens.
        window: W in tokens; default 1024, or a quarter of L where that is less.

    Works without training. Differs from the paper: a scale is that of all heads, where it may pick 48 of 64 pairs in each head, and
    leave the others at their own positions. Differs from the authors' code: when it decodes, it has floor(W / s) for W / s.
    """

    of_pairs: Tensor

    def __init__(self, geometry: Geometry, *, scales: Sequence[int] = (2, 8, 2, 8, 32, 32, 32, 4), window: int | None = None):
        super().__init__(geometry)
        if not isinstance(scales, list | tuple) or not scales:
            raise ValueError(f"scales is a list of whole numbers, one a group of dimensions, got {scales!r}")
        self.scales = [count("each of scales", s) for s in scales]
        self.window = max(1, min(1024, geometry.max_positions // 4)) if window is None else count("window", window)

    def reset_buffers(self) -> None:
        super().reset_buffers()
        pairs = len(self.base.inv_freq)
        self.set_buffer("of_pairs", torch.tensor([self.scales[k * len(self.scales) // pairs] for k in range(pairs)]))

    def stored(self, pos: Tensor) -> Tensor:
        return pos[..., None] // self.of_pairs

    def far(self, pos: Tensor) -> Tensor:
        """The `Place` of queries for keys beyond the window."""
        return self.stored(pos) + self.window - self.window / self.of_pairs.to(pos)

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        return windowed(self.window, near=self.turn(own, lambda j: j[..., None]), far=self.turn(self.far))
