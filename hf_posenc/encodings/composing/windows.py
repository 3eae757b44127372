"""Any encoding within a stretch of the text behind each query. What a query does not see stays in the KV cache all the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..base import Geometry, PositionalEncoding, Region, create
from ..options import count
from .made import Composed, within

Bounds = Callable[[Tensor], tuple[Tensor, Tensor]]


class SlidingWindow(Composed):
    """Around an encoding: a query sees the last `sliding_window` tokens, itself among them."""

    sliding_window: int

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        return [_from(region, partial(_last, self.sliding_window)) for region in super().regions(q_pos, k_pos)]


class AttentionChunks(Composed):
    """Around an encoding: a query sees those of the same chunk of `attention_chunk` tokens."""

    attention_chunk: int

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        return [_from(region, partial(_chunk, self.attention_chunk)) for region in super().regions(q_pos, k_pos)]


def _last(length: int, q_pos: Tensor) -> Tensor:
    return q_pos - length + 1


def _chunk(length: int, q_pos: Tensor) -> Tensor:
    return q_pos - q_pos % length


def _from(region: Region, first: Callable[[Tensor], Tensor]) -> Region:
    """`region` without the keys before the `first` position that each query sees."""
    return region._replace(keys=partial(_bounds, region.keys, first))


def _bounds(keys: Bounds | None, first: Callable[[Tensor], Tensor], q_pos: Tensor) -> tuple[Tensor, Tensor]:
    start = first(q_pos)
    if keys is None:
        return start, q_pos + 1
    own, end = keys(q_pos)
    return torch.maximum(own, start), end


def windowed(kind: type[Composed], option: str, value: Any, name: str, geometry: Geometry, options: dict[str, Any]) -> PositionalEncoding:
    """The encoding `name` in a window of this `kind`, whose length in tokens is called `option`."""
    encoding = within(kind, create(name, geometry, **options))
    setattr(encoding, option, count(option, value))
    return encoding
