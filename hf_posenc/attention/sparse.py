"""Which blocks of 128 queries and 128 keys meet: what flex attention skips, reads whole, or asks about pair by pair.

Nothing here asks the device for a number, and no [Q,K] tensor is made where the mask follows from the shapes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from ..encodings import PositionalEncoding, Region
from .layout import Layout, blocks_of
from .masks import ByIndex, by_index, settled, visible

SIZE = 128
"""Queries, and keys, of one block."""
SCAN_PAIRS = 1 << 26
"""Pairs that are looked at in one go where a mask says no more than what it says of each pair."""
Kind = TypeVar("Kind", bound=BlockMask)


class Blocks(NamedTuple):
    """For blocks of queries and keys, [B or 1,H or 1,Q/128,K/128] bool: those where some pair may meet, and those where all do."""

    some: Tensor
    every: Tensor

    def within(self, other: Blocks) -> Blocks:
        """Of pairs that meet in both."""
        return Blocks(self.some & other.some, self.every & other.every)


KEPT = 8
"""Masks that are kept from one forward pass to the next for each encoding: one for each length, region and mode of gradients."""
_kept: WeakKeyDictionary[Any, OrderedDict[Hashable, BlockMask]] = WeakKeyDictionary()


def block_mask_of(layout: Layout, encoding: PositionalEncoding, index: int, region: Region) -> BlockMask:
    """The pairs of the region number `index` of `encoding`: made once a forward pass, and not again for the next that is like it."""
    owner: Hashable = encoding if region.is_bounded else BlockMask  # what has no bounds is the same for all
    what = (owner, "pairs", index, torch.is_grad_enabled())
    device = layout.q_pos.device
    # Within a graph nothing is plain, and no stream is asked for.
    if not layout.is_plain or region.queries is not None or (stream := _stream(device)) is None:
        return layout.once(what, lambda: block_mask(layout, region))
    key = (*what[1:], tuple(layout.q_pos.shape), device, stream, torch.is_inference_mode_enabled())
    kept = _kept.setdefault(owner, OrderedDict())
    found = kept.pop(key, None) or block_mask(layout, region)
    kept[key] = found
    while len(kept) > KEPT:
        kept.popitem(last=False)
    return found


def _stream(device: torch.device) -> Hashable:
    """The queue that the device works through, in which alone a mask is known to be there; None while it is recorded."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 0
    return None if torch.cuda.is_current_stream_capturing() else torch.cuda.current_stream(device).stream_id


def block_mask(layout: Layout, region: Region) -> BlockMask:
    """The pairs that meet, of those that belong to `region`."""
    mask, bounded = layout.mask, region.is_bounded
    if isinstance(mask, BlockMask) and not bounded:
        return mask
    blocks, seen = layout.once("blocks", lambda: _visible_blocks(layout)), _visible_pairs(layout)
    if bounded:
        low, high, k_pos = _bounds(layout, region)
        blocks = blocks.within(between(low, high, k_pos))
        seen = _both(seen, _within(low, high, k_pos))
    return assemble(blocks, seen, layout.num_queries, layout.num_keys, backward=torch.is_grad_enabled())


def assemble(blocks: Blocks, seen: ByIndex, num_queries: int, num_keys: int, backward: bool, kind: type[Kind] = BlockMask) -> Kind:  # type: ignore[assignment]
    """A `BlockMask` that asks `seen` about the pairs of blocks where some meet and some do not.

    Args:
        backward: it lists the queries of each block of keys too, by which the backward pass goes.
    """
    listed = (*_listed(blocks.some & ~blocks.every), *_listed(blocks.every))
    lengths = (num_queries, num_keys)
    return kind.from_kv_blocks(*listed, BLOCK_SIZE=SIZE, mask_mod=seen, seq_lengths=lengths, compute_q_blocks=backward)


def between(low: Tensor, high: Tensor, pos: Tensor) -> Blocks:
    """The blocks of pairs low <= pos < high, for `low` and `high` [B,Q] of queries and `pos` [B,K] of keys."""
    first, last = _per_block(low, torch.amin), _per_block(high, torch.amax)
    lowest, highest = _per_block(pos, torch.amin), _per_block(pos, torch.amax)
    some = (lowest[:, None] < last[:, :, None]) & (highest[:, None] >= first[:, :, None])
    first, last = _per_block(low, torch.amax), _per_block(high, torch.amin)
    every = (lowest[:, None] >= first[:, :, None]) & (highest[:, None] < last[:, :, None]) & _whole(pos.shape[1], pos.device)
    return Blocks(some[:, None], every[:, None])


def scanned(seen: Callable[[slice], Tensor], num_queries: int, num_keys: int, batch: int = 1) -> Blocks:
    """The blocks of a mask that is looked at pair by pair: `seen` gives [B or 1,H or 1,rows,K] bool for some of the queries.

    Args:
        batch: rows that it makes a tensor for.
    """
    parts = [Blocks(*_reduced(seen(rows))) for rows in _scans(num_queries, batch * num_keys)]
    some, every = (torch.cat(x, 2) for x in zip(*parts, strict=True))
    return Blocks(some, every & _whole(num_keys, every.device))


def _scans(num_queries: int, width: int) -> Iterator[slice]:
    step = max(1, SCAN_PAIRS // max(1, width) // SIZE) * SIZE
    yield from blocks_of(slice(0, num_queries), step)


def _reduced(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Whether some, and whether all, of the pairs [.,H,Q,K] of each block meet in any, and in every, head: [.,1,Q/128,K/128]."""
    some, every = pairs.any(1, keepdim=True), pairs.all(1, keepdim=True)
    for dim in (-2, -1):
        past = -pairs.shape[dim] % SIZE
        pad = (0, past) if dim == -1 else (0, 0, 0, past)
        some = F.pad(some, pad, value=False).unflatten(dim, (-1, SIZE)).any(dim)
        every = F.pad(every, pad, value=True).unflatten(dim, (-1, SIZE)).all(dim)
    return some, every


def _per_block(x: Tensor, reduce: Callable) -> Tensor:
    """[B,n/128]: the least or the greatest of `x` [B,n] in each block."""
    past = -x.shape[1] % SIZE
    if past:  # more of the last one, which changes neither
        x = torch.cat((x, x[:, -1:].expand(-1, past)), 1)
    return reduce(x.unflatten(1, (-1, SIZE)), -1)


def _whole(num_keys: int, device: torch.device) -> Tensor:
    """[K/128] bool: the blocks of keys that have all 128."""
    return (torch.arange(-(-num_keys // SIZE), device=device) + 1) * SIZE <= num_keys


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has [.,1,Q/128], and which: [.,1,Q/128,K/128], those first. int32."""
    count = blocks.sum(-1, dtype=torch.int32)
    return count, blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32).contiguous()


def _unlisted(count: Tensor, which: Tensor) -> Tensor:
    """The inverse of `_listed`."""
    named = torch.arange(which.shape[-1], device=which.device) < count[..., None]
    return torch.zeros_like(which).scatter_add(-1, which.long(), named.to(which.dtype)) > 0


def _visible_blocks(layout: Layout) -> Blocks:
    mask, queries, keys = layout.mask, layout.num_queries, layout.num_keys
    device = layout.q_pos.device
    if isinstance(mask, BlockMask) and mask.BLOCK_SIZE == (SIZE, SIZE):
        every = torch.zeros_like(mask.kv_indices, dtype=torch.bool)
        if mask.full_kv_num_blocks is not None and mask.full_kv_indices is not None:
            every = _unlisted(mask.full_kv_num_blocks, mask.full_kv_indices)
        return Blocks(_unlisted(mask.kv_num_blocks, mask.kv_indices) | every, every)
    if mask is None:
        key = torch.arange(keys, device=device)[None]
        end = key[:, :queries] + 1 if queries > 1 else torch.full_like(key[:, :1], keys)
        return between(torch.zeros_like(end), end, key)
    return scanned(lambda rows: visible(mask, rows, queries, keys, device), queries, keys)


def _visible_pairs(layout: Layout) -> ByIndex:
    mask = layout.mask
    if isinstance(mask, BlockMask):
        return mask.mask_mod
    if mask is None:
        return _causal if layout.num_queries > 1 else _all
    return by_index(mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2)


def _causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return k <= q


def _all(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return k >= 0


def _within(low: Tensor, high: Tensor, pos: Tensor) -> ByIndex:
    def within(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (low[b, q] <= pos[b, k]) & (pos[b, k] < high[b, q])

    return within


def _both(one: ByIndex, other: ByIndex) -> ByIndex:
    def both(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return one(b, h, q, k) & other(b, h, q, k)

    return both


def _bounds(layout: Layout, region: Region) -> tuple[Tensor, Tensor, Tensor]:
    """First and end position of the keys in the region that each query has [B,Q], and positions of the keys [B,K]: int32."""
    q_pos, k_pos = layout.small_positions
    largest = torch.iinfo(q_pos.dtype).max
    if region.keys is None:
        low, high = torch.zeros_like(q_pos), torch.full_like(q_pos, largest)
    else:
        low, high = (x.to(q_pos.dtype) for x in region.keys(q_pos))
    if region.queries is not None:
        first, end = (max(0, min(x, largest)) for x in region.queries)
        high = high.masked_fill((q_pos < first) | (q_pos >= end), 0)
    return settled(low.contiguous()), settled(high.contiguous()), k_pos
