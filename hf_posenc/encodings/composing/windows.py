"""Any encoding within a stretch of the text behind each query. What a query does not see stays in the KV cache all the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from ..base import Block, Geometry, Region, create
from ..options import count
from .made import Composed, within

First = Callable[[Tensor], Tensor]
"""Positions of queries, of any shape -> the first position that each sees."""


def last(length: int, q_pos: Tensor) -> Tensor:
    """Of the last `length` tokens, the query itself among them."""
    return q_pos - length + 1


def chunk(length: int, q_pos: Tensor) -> Tensor:
    """Of the same chunk of `length` tokens."""
    return q_pos - q_pos % length


class Windowed(Composed):
    """Around an encoding: of each query's keys, those before the first are hidden, in all stages that see pairs."""

    firsts: tuple[First, ...]
    """Of several windows, the narrower counts."""


class WindowedRegions(Windowed):
    """By regions, which kernels skip the rest of."""

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        return [region._replace(keys=partial(_bounds, region.keys, self.firsts)) for region in super().regions(q_pos, k_pos)]


class WindowedBias(Windowed):
    """By a bias of -inf, where queries and keys meet in another way than by regions."""

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        bias = super().bias(h, q_pos, k_pos)
        return torch.where(k_pos >= _first(self.firsts, q_pos), bias, -torch.inf)


class WindowedMix(Windowed):
    """Scores are mixed with those of pairs that are left."""

    def mix(self, scores: Tensor, block: Block) -> Tensor:
        near, block = _near(self.firsts, block)
        return super().mix(scores.where(near, 0), block).masked_fill(~near, -torch.inf)


class WindowedWeights(Windowed):
    """Weights are those of pairs that are left."""

    def normalise(self, scores: Tensor, block: Block) -> Tensor:
        near, block = _near(self.firsts, block)
        return super().normalise(scores.where(near, 0), block).masked_fill(~near, 0)


def _first(firsts: tuple[First, ...], q_pos: Tensor) -> Tensor:
    return reduce(torch.maximum, (first(q_pos) for first in firsts))


def _near(firsts: tuple[First, ...], block: Block) -> tuple[Tensor, Block]:
    """Which pairs [B,1,Q,K] are left, and the block in which no others meet."""
    own, keys = block.q_pos[:, :, None], block.k_pos[:, None]
    near = ((keys >= _first(firsts, own)) & (keys <= own))[:, None]  # padding may stand before keys that it sees
    return near, dataclasses.replace(block, seen=near if block.seen is None else block.seen & near)


def _bounds(keys: Any, firsts: tuple[First, ...], q_pos: Tensor) -> tuple[Tensor, Tensor]:
    start = _first(firsts, q_pos)
    if keys is None:
        return start, q_pos + 1
    own, end = keys(q_pos)
    return torch.maximum(own, start), end


def windowed(
    first: Callable[[int, Tensor], Tensor], option: str, value: Any, name: str, geometry: Geometry, options: dict[str, Any]
) -> Any:
    """The encoding `name` in a window, whose length in tokens is called `option`."""
    encoding: Any = create(name, geometry, **options)
    firsts: tuple[First, ...] = (partial(first, count(option, value)),)
    if isinstance(encoding, Windowed):
        firsts += encoding.firsts
    else:
        kinds = {"mix": WindowedMix, "normalise": WindowedWeights}
        outer = [WindowedBias if encoding.has("meet") else WindowedRegions]
        encoding = within([*outer, *(kind for stage, kind in kinds.items() if encoding.has(stage))], encoding)
    if first is chunk:
        encoding = within([], encoding, relative=False)
    encoding.firsts = firsts
    return encoding
