"""Rotations that differ by query, and those whose frequencies depend on how long the text is by the time of the query."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from ..base import Geometry, Region, at_hand, has_values
from ..options import count
from .rope import RoPE, cos_sin, once, turn_pairs
from .scaling import ScaledRoPE


class RoPEByQuery(RoPE):
    """Queries see all keys turned as suits the query: those that are suited alike, at consecutive positions, are a region of their own.

    Keys are cached raw, so one pass over a text gives what token-by-token decoding gives.
    """

    caches = "raw"

    def changes(self, first: int, last: int) -> Iterable[int]:
        """The positions after `first`, up to `last`, from which on queries are suited by something else, in ascending order."""
        raise NotImplementedError

    def told(self, begin: Tensor) -> Tensor:
        """What the regions that begin at positions `begin` [N] are told, [N,...]: kept for all layers, so nothing that is learned."""
        return begin

    def rotate_region(self, told: Tensor, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        """The `rotate` of a region."""
        raise NotImplementedError

    def rotate_rows(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        """The `rotate` where each row of the batch has one query, at `q_pos` [B,1]."""
        raise NotImplementedError

    def starts(self, q_pos: Tensor) -> list[int]:
        """Where the regions of queries at `q_pos` [B,Q] begin, in ascending order."""
        first, last = torch.stack(q_pos.aminmax()).tolist() if has_values(q_pos) else (0, 0)
        return [first, *self.changes(first, last)]

    def frequencies(self) -> tuple[Tensor, float] | None:
        return None

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        if q_pos.shape[1] == 1:
            return [Region(self.rotate_rows)]
        starts = self.starts(q_pos)
        if at_hand(q_pos) or self.data_dependent:
            begin = torch.tensor(starts, device=q_pos.device)
        else:  # made there, not copied there
            begin = torch.cat([torch.full((1,), start, device=q_pos.device) for start in starts])
        told = self.told(begin)
        if len(starts) == 1:
            return [Region(partial(self.rotate_region, told[0]))]
        bounds = zip(starts, [*starts[1:], sys.maxsize], strict=True)
        return [Region(partial(self.rotate_region, own), queries=queries) for own, queries in zip(told, bounds, strict=True)]

    def rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{self.name} turns every query row differently; it has regions")


class RoPEByLength(RoPEByQuery, ScaledRoPE):
    """A query at position i sees all keys turned with the frequencies of a text of i + 1 tokens.

    Stock transformers uses the frequencies of the whole input for every row and leaves keys in the cache as they were first
    turned, so that its evaluation and its decoding disagree.
    """

    relative = False

    def frequencies_for(self, pos: Tensor) -> Tensor:
        """Inverse frequencies [..., r/2] in float32 that serve queries at `pos` [...], on its device."""
        raise NotImplementedError

    def told(self, begin: Tensor) -> Tensor:
        return self.frequencies_for(begin)

    def rotate_region(self, told: Tensor, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        return self._rotate_by(told, q, k, q_pos, k_pos)

    def rotate_rows(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        inv_freq = once(q_pos, (self, *self.parameters()), lambda: self.frequencies_for(q_pos))
        return self._rotate_by(inv_freq[:, None], q, k, q_pos, k_pos)

    def _rotate_by(self, inv_freq: Tensor, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        return self._turned(q, q_pos, inv_freq, self.query_factor(q_pos)), self._turned(k, k_pos, inv_freq, self.attention_factor)

    def query_factor(self, pos: Tensor) -> float | Tensor:
        """Factor on cos and sin of queries at `pos` [B,Q]: a number, or [B,1,Q,1]."""
        return self.attention_factor

    def _turned(self, x: Tensor, pos: Tensor, inv_freq: Tensor, factor: float | Tensor) -> Tensor:
        cos, sin = cos_sin(pos, inv_freq, factor, x)
        return turn_pairs(x, cos, sin, self.geometry)


class RoPEBySteps(RoPEByLength):
    """Beyond the length that needs nothing, the length n that the frequencies are for grows in steps.

    Args:
        step: tokens in a step, so that rows share frequencies; default L / 64. 1 is the rule of papers.
    """

    data_dependent = True

    def __init__(self, geometry: Geometry, *, step: int | None = None, **options):
        super().__init__(geometry, **options)
        self.step = max(1, geometry.max_positions // 64) if step is None else count("step", step)

    @property
    def settled_length(self) -> int:
        """Tokens up to which the frequencies stay as they are."""
        return self.geometry.max_positions

    def stepped(self, pos: Tensor) -> Tensor:
        """n that queries at `pos` beyond the settled length are served for."""
        return self.settled_length + self.step * ((pos - self.settled_length).clamp(min=0) // self.step + 1)

    def changes(self, first: int, last: int) -> Iterable[int]:
        passed = max(0, (first - self.settled_length) // self.step + 1)
        return range(self.settled_length + self.step * passed, last + 1, self.step)
