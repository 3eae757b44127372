"""Where the queries and keys of one forward pass lie: settled once, for all its layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..encodings import PositionalEncoding, Region
from ..encodings.base import at_hand, has_values
from .masks import Mask, key_positions, settled, visible
from .positions import COUNTED

MEMO = "posenc_layouts"
"""Attribute of the tensor of position ids, which lives as long as one forward pass, that holds its layouts."""
SCAN_BYTES = 1 << 24
SHORTEST = 16
"""Average rows of a segment below which one masked problem is cheaper than many small ones."""


class Segment(NamedTuple):
    """A causal problem of its own: the queries `rows` are the last of `keys`, which lie one position apart, the first at `position`.

    Padding belongs to no segment, and each document of a packed row is one. A query sees at most the last `window` keys, itself
    included.
    """

    batch: slice
    rows: slice
    keys: slice
    position: int
    window: int | None = None

    @property
    def offset(self) -> int:
        """Index of the key of query 0, were it one of these."""
        return self.keys.stop - self.rows.stop

    @property
    def zero(self) -> int:
        """Position of query 0, were it one of these."""
        return self.position + self.offset - self.keys.start

    def first_key(self, row: int) -> int:
        """Index of the first key that query `row` sees."""
        return self.keys.start if self.window is None else max(self.keys.start, self.offset + row + 1 - self.window)


@dataclasses.dataclass
class Layout:
    """Positions and visibility of `num_keys` keys for queries at `q_pos` [B,Q].

    Args:
        counted: the positions are known to be one apart, padding left out.
    """

    q_pos: Tensor
    mask: Mask
    num_keys: int
    counted: bool = False
    memo: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, position_ids: Tensor, mask: Mask, batch: int, num_keys: int) -> Layout:
        """The layout of a call with `position_ids` [1 or B,Q]; all layers of a forward pass ask with the same tensors and share it."""
        if torch.compiler.is_compiling():
            return cls(position_ids.expand(batch, -1), mask, num_keys)
        known = vars(position_ids).setdefault(MEMO, {})
        key = (id(mask), batch, num_keys)
        if key not in known:
            # A copy, since a view would keep the tensor alive that holds it.
            known[key] = cls(position_ids.clone().expand(batch, -1), mask, num_keys, COUNTED in vars(position_ids))
        return known[key]

    def behind(self, mask: Mask) -> Layout:
        """The same positions, where a mask hides further keys, of which it does not tell where they are."""
        return Layout(self.q_pos, mask, self.num_keys, memo={key_positions: self.k_pos})

    @property
    def num_queries(self) -> int:
        return self.q_pos.shape[1]

    @property
    def k_pos(self) -> Tensor:
        """[B,K]"""
        return self.once(key_positions, lambda: key_positions(self.q_pos, self.mask, self.num_keys))

    @property
    def own(self) -> tuple[Tensor, Tensor]:
        """Index [1 or B,Q] of each query's own key, the last that it sees, and which keys [1 or B,K] are seen by any query."""
        return self.once("own", lambda: own_keys(self.mask, self.num_queries, self.num_keys, self.q_pos.device))

    @property
    def segments(self) -> list[Segment] | None:
        """The causal problems that this one consists of; None where it does not fall apart so, or where looking would mean waiting."""
        if not at_hand(self.q_pos) or self.q_pos.is_floating_point():
            return None
        if isinstance(self.mask, Tensor) and self.mask.is_floating_point():
            return None
        return self.once(split, lambda: split(self.q_pos, self.k_pos, self.mask))

    @property
    def is_plain(self) -> bool:
        """Whether it follows from the shapes alone: a whole text from position 0 on, nothing hidden but the future."""
        return self.counted and self.mask is None and self.num_queries == self.num_keys

    @property
    def distinct_positions(self) -> tuple[Tensor, Tensor]:
        """Positions of the queries [B,Q] and of the keys [B,K], of one row alone where all are known to be alike."""
        alike = self.q_pos.stride(0) == 0 and self.k_pos.stride(0) == 0
        return (self.q_pos[:1], self.k_pos[:1]) if alike else (self.q_pos, self.k_pos)

    @property
    def small_positions(self) -> tuple[Tensor, Tensor]:
        """Positions of the queries [B,Q] and of the keys [B,K] as a kernel reads them: int32, in one piece."""

        def small(pos: Tensor) -> Tensor:
            return settled(pos.int().expand(len(self.q_pos), -1).contiguous())

        return self.once("small", lambda: (small(self.q_pos), small(self.k_pos)))

    @property
    def reach(self) -> int | None:
        """More than any distance from a query to a key that it sees; None within a graph, where only the shapes are known.

        Unless the positions were counted, this looks at their numbers: one wait a forward pass.
        """
        if torch.compiler.is_compiling() or not has_values(self.q_pos):
            return None
        if self.counted:
            return self.num_keys
        return self.once("reach", lambda: max(1, int(self.q_pos.max() - self.k_pos.min()) + 1))

    def reach_of(self, keys: slice) -> int | None:
        """The same for a block of queries that see none but `keys`."""
        return min(self.num_keys, keys.stop) if self.counted else self.reach

    @property
    def extents(self) -> tuple[list[int], list[int]]:
        """The least and the greatest position of each row of queries, over the batch: one wait a forward pass."""
        return self.once("extents", lambda: torch.stack(self.q_pos.aminmax(dim=0)).tolist())

    def regions(self, encoding: PositionalEncoding, rows: slice = slice(None)) -> list[Region]:
        """The regions of `encoding`, but for those that are known to hold none of the queries `rows`."""
        regions = self.once((encoding, "regions"), lambda: encoding.regions(self.q_pos, self.k_pos))
        if torch.compiler.is_compiling() or not has_values(self.q_pos) or all(region.queries is None for region in regions):
            return regions
        return self.once((encoding, "regions", rows.start, rows.stop), lambda: list(self._inhabited(regions, rows)))

    def _inhabited(self, regions: list[Region], rows: slice) -> Iterator[Region]:
        """Those of `regions` that may hold queries of `rows`, without bounds where they hold all."""
        least, greatest = self.extents
        first, last = min(least[rows]), max(greatest[rows])
        for region in regions:
            start, stop = region.queries or (first, last + 1)
            if start <= first and last < stop:
                yield region._replace(queries=None)
            elif start <= last and first < stop:
                yield region

    def once(self, owner: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, made for the first layer that asks on behalf of `owner`."""
        if owner not in self.memo:
            self.memo[owner] = make()
        return self.memo[owner]


def blocks_of(rows: slice, size: int) -> list[slice]:
    """`rows` in blocks of `size` and a rest."""
    return [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]


def split(q_pos: Tensor, k_pos: Tensor, mask: Mask) -> list[Segment] | None:
    """The segments of a problem; None if it is not made of such."""
    bounds = intervals(mask, q_pos.shape[1], k_pos.shape[1], q_pos.device)
    if bounds is None:
        return None
    first, end = (x.expand(len(q_pos), -1) for x in bounds)
    alike = _same_rows(q_pos) and _same_rows(k_pos) and _same_rows(first) and _same_rows(end)
    batches = [slice(0, len(q_pos))] if alike else [slice(b, b + 1) for b in range(len(q_pos))]
    window = _window(first[: len(batches)], end[: len(batches)])
    segments: list[Segment] = []
    for batch in batches:
        row = batch.start
        found = _segments(batch, q_pos[row], k_pos[row], first[row], end[row], window)
        if found is None:
            return None
        segments += found
    rows = len(batches) * q_pos.shape[1]
    return None if len(segments) > max(rows / SHORTEST, len(batches), 8) else segments


def intervals(mask: Mask, num_queries: int, num_keys: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """First and end index [B or 1,Q] of the keys that each query sees; None if some query sees keys with holes between them,
    or heads see different keys.
    """
    if mask is None:
        end = torch.full((1, 1), num_keys, device=device) if num_queries == 1 else torch.arange(1, num_queries + 1, device=device)[None]
        return torch.zeros_like(end), end
    step = max(1, SCAN_BYTES // num_keys)
    parts = []
    for rows in blocks_of(slice(0, num_queries), step):
        seen = visible(mask, rows, num_queries, num_keys, device)
        if seen.shape[1] > 1:  # heads that see different keys
            return None
        seen = seen[:, 0].contiguous().view(torch.uint8)
        count, first, last = seen.sum(-1), seen.argmax(-1), num_keys - 1 - seen.flip(-1).argmax(-1)
        if bool(((count != last - first + 1) & (count > 0)).any()):
            return None
        parts.append((first, first + count))
    first, end = (torch.cat(x, -1) for x in zip(*parts, strict=True))
    return first, end


def own_keys(mask: Mask, num_queries: int, num_keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Index [1 or B,Q] of the last key that each query sees, 0 if it sees none, and whether any query sees a key, [1 or B,K] bool."""
    steps = torch.arange(num_keys, device=device)[None]
    if mask is None:
        own = steps[:, -1:] if num_queries == 1 else steps[:, :num_queries]
        return own, steps <= own[:, -1:]
    parts, any_sees = [], torch.zeros_like(steps, dtype=torch.bool)
    for rows in blocks_of(slice(0, num_queries), max(1, SCAN_BYTES // num_keys)):
        seen = visible(mask, rows, num_queries, num_keys, device).any(1)
        parts.append(torch.where(seen, steps[:, None], 0).amax(-1))
        any_sees = any_sees | seen.any(-2)
    return torch.cat(parts, -1), any_sees


def _same_rows(x: Tensor) -> bool:
    return len(x) == 1 or x.stride(0) == 0 or bool((x[1:] == x[:1]).all())


def _runs(first: Tensor, end: Tensor, pos: Tensor | None = None) -> Tensor:
    """[...,Q] bool: where a query does not simply go on from the one before it."""
    goes_on = (end.diff(dim=-1) == 1) & (first.diff(dim=-1) >= 0) & (first[..., 1:] < end[..., :-1]) & (end > first)[..., :-1]
    if pos is not None:
        goes_on &= pos.diff(dim=-1) == 1
    return torch.cat((torch.ones_like(first[..., :1], dtype=torch.bool), ~goes_on), -1)


def _window(first: Tensor, end: Tensor) -> int | None:
    """Keys seen at most [B,Q], where a later query of a run no longer sees the first key of that run."""
    moved = ~_runs(first, end)[:, 1:] & (first.diff(dim=-1) > 0)
    return int((end - first)[:, 1:][moved].max()) if bool(moved.any()) else None


def _segments(batch: slice, pos: Tensor, k_pos: Tensor, first: Tensor, end: Tensor, window: int | None) -> list[Segment] | None:
    """The segments of one row of a batch: `pos`, `first` and `end` of its queries [Q], `k_pos` of its keys [K]."""
    starts = _runs(first, end, pos)
    heads = starts.nonzero()[:, 0]
    lowest = first[heads][starts.cumsum(0) - 1]
    seen = end > first
    expected = lowest if window is None else torch.maximum(lowest, end - window)
    if bool((seen & (first != expected)).any()) or not _keys_are_consecutive(pos[seen], k_pos, first[seen], end[seen] - 1):
        return None
    table = torch.stack((heads, first[heads], end[heads], pos[heads], seen[heads]), -1).tolist()
    stops = [row[0] for row in table[1:]] + [len(pos)]
    return [
        Segment(batch, slice(start, stop), slice(low, high + stop - start - 1), at - (high - 1 - low), window)
        for (start, low, high, at, sees), stop in zip(table, stops, strict=True)
        if sees
    ]


def _keys_are_consecutive(pos: Tensor, k_pos: Tensor, first: Tensor, last: Tensor) -> bool:
    """Whether the keys that each query sees, from `first` to `last`, lie one position apart, the last at the position of the query."""
    jumps = torch.cat((k_pos.new_zeros(1), (k_pos.diff() != 1).cumsum(0)))
    return bool(((jumps[first] == jumps[last]) & (k_pos[last] == pos)).all())
