from __future__ import annotations

from bisect import bisect_left

import numpy as np
import torch
from torch import Tensor

from ..base import Geometry, Region, register
from ..options import count, positive
from .base import ExtendedRoPE, own, windowed


@register("self")
class LogisticSelfExtend(ExtendedRoPE):
    """SELF, groups that grow along a logistic curve (Dang et al., 2025, arXiv:2505.17296, and the authors' code).

    Group x = 0, 1, 2 ... of a text has floor(C / (1 + (C - 1) e^(-r x))) tokens: one at first, C - 1 in the end. g(t) is the group of
    its t-th token, and g(0) = 0. A key fewer than W tokens back looks as far as it is; key j beyond looks W + g(i - W) - g(j) tokens
    away. Distances stay within the native context L as long as g(i - W) < L - W; a position beyond is an error.

    Args:
        factor: target context over native context, from which C is chosen; default 4 where neither C nor a target is given.
        target_length: target context in tokens, instead of `factor`.
        capacity: C, at least 2, instead of a target; default the smallest that reaches it.
        rate: r; default 0.02 where L is 4096, as the authors have it, and in inverse proportion to L.
        window: W in tokens, less than L; default L / 4.

    Works without training. Differs from the authors' code: these are the positions with which it reads a text; when it decodes, it
    has W for C, and the first tokens of a text nearest to the query.
    """

    ends: Tensor

    def __init__(
        self,
        geometry: Geometry,
        *,
        factor: float | None = None,
        target_length: int | None = None,
        capacity: int | None = None,
        rate: float | None = None,
        window: int | None = None,
    ):
        super().__init__(geometry)
        self.window = self.window_within(window)
        self.rate = 0.02 * 4096 / self.native_length if rate is None else positive("rate", rate)
        target = self.target(factor, target_length, capacity=capacity)
        self.capacity = count("capacity", capacity, 2) if capacity is not None else self._smallest(target)
        self.reach = self._reach(self.capacity)

    def _smallest(self, target: int) -> int:
        capacities = range(2, target + 2)
        at = bisect_left(capacities, target, key=self._reach)
        if at == len(capacities):
            raise ValueError(
                f"groups that grow at rate = {self.rate:g} beyond window = {self.window} never reach {target} tokens. "
                "Use a greater rate or a shorter window."
            )
        return capacities[at]

    def _sizes(self, capacity: int) -> np.ndarray:
        """Tokens of each of the groups [L - W] for which there are distances."""
        x = np.arange(self.native_length - self.window)
        return np.floor(capacity / (1 + (capacity - 1) * np.exp(-self.rate * x))).clip(1, capacity - 1).astype(np.int64)

    def _reach(self, capacity: int) -> int:
        return self.window + 1 + int(self._sizes(capacity).sum())

    @property
    def context_length(self) -> int:
        return self.reach

    def reset_buffers(self) -> None:
        super().reset_buffers()
        self.set_buffer("ends", torch.from_numpy(self._sizes(self.capacity).cumsum()))

    def stored(self, pos: Tensor) -> Tensor:
        return torch.bucketize(pos, self.ends.to(pos)).to(pos)

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        far = self.turn(lambda i: self.stored(i - self.window) + self.window)
        return windowed(self.window, near=self.turn(own, own), far=far)
