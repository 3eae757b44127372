"""Masks on an accelerator: what transformers would write down as [B,1,Q,K] numbers, as blocks of pairs instead."""

from __future__ import annotations

from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers.masking_utils import (
    add_offsets_to_mask_function,
    and_masks,
    causal_mask_function,
    padding_mask_function,
    prepare_padding_mask,
)

from ..compat import called_by_sizes, eager_mask, flex_attention_mask, sdpa_mask
from . import sparse
from .masks import Mask, visible
from .places import follow

SHORTEST = sparse.SIZE
"""Queries below which a mask is small, and written down as transformers does it."""


class FollowingMask(BlockMask):
    """A `BlockMask` that can follow its layer to another device, with what its function holds."""

    def to(self, device: Any, **kwargs: Any) -> BlockMask:
        """This mask on `device`: the same object for all layers there."""
        device = torch.device(device)
        if device == self.kv_indices.device:
            return self
        places = vars(self).setdefault("posenc_places", {})  # not itself: it would live until Python looks for cycles
        if device not in places:
            there = super().to(device)
            there.mask_mod = _moved(there.mask_mod, device)
            there.__class__ = type(self)
            places[device] = there
        return places[device]


class StructuredMask(FollowingMask):
    """One that can be written down too."""

    ndim = 4
    """As GPT-2 asks: not a mask for padding."""

    def written(self) -> Tensor:
        """[B,1,Q,K] bool, for a kernel that takes no other mask; made once."""
        known = vars(self)
        if "posenc_written" not in known:
            queries, keys = self.seq_lengths
            known["posenc_written"] = visible(self, slice(0, queries), queries, keys, self.kv_indices.device).contiguous()
        return known["posenc_written"]


def written(mask: Mask) -> Mask:
    """`mask` as sdpa takes it."""
    return mask.written() if isinstance(mask, StructuredMask) else mask


class _Asked(Exception):
    """A mask is needed."""


def _asked(*index: Tensor) -> Tensor:
    raise _Asked


@called_by_sizes
def mask_for_sdpa(batch_size: int, q_length: int, kv_length: int, *offsets: Any, **kwargs: Any) -> Mask:
    """What transformers makes for sdpa; on an accelerator, where that would be a large tensor, a `StructuredMask`.

    Args:
        kwargs: as transformers passes them on, `mask_function`, `attention_mask` [B,K] and `device` among them.
    """
    on_cpu = torch.device(kwargs.get("device", "cpu")).type == "cpu"
    make = sdpa_mask if on_cpu or q_length < SHORTEST or torch.compiler.is_compiling() else in_blocks
    return follow(make(batch_size, q_length, kv_length, *offsets, **kwargs))


@called_by_sizes
def mask_for_eager(*args: Any, **kwargs: Any) -> Mask:
    """What transformers makes for eager attention."""
    return follow(eager_mask(*args, **kwargs))


@called_by_sizes
def mask_for_flex(batch_size: int, q_length: int, kv_length: int, q_offset: Any = 0, *more: Any, **kwargs: Any) -> Mask:
    """What transformers makes for flex attention. It keeps the offset, and reads it when a static cache has counted on in that tensor."""
    q_offset = q_offset.clone() if isinstance(q_offset, Tensor) else q_offset
    mask = flex_attention_mask(batch_size, q_length, kv_length, q_offset, *more, **kwargs)
    if not torch.compiler.is_compiling():
        mask.__class__ = FollowingMask
    return mask


def in_blocks(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: Any = "cpu",
    **kwargs: Any,
) -> StructuredMask | None:
    """A `StructuredMask`; None where transformers leaves the mask to the kernel."""
    sizes = (batch_size, q_length, kv_length, q_offset, kv_offset)
    try:  # whether a mask is needed, says transformers
        sdpa_mask(*sizes, mask_function=_asked, attention_mask=attention_mask, device=device, **kwargs | {"use_vmap": False})
    except _Asked:
        return _structured(*sizes, mask_function, attention_mask, torch.device(device))
    return None


def _structured(
    batch: int, queries: int, keys: int, q_offset: Any, kv_offset: int, function: Callable, padding: Tensor | None, device: torch.device
) -> StructuredMask:
    if padding is not None:
        padding = cast(Tensor, prepare_padding_mask(padding.bool(), keys, kv_offset))  # a static cache has room for more
        function = and_masks(function, padding_mask_function(padding))
    if isinstance(q_offset, Tensor):  # of a static cache, which counts on in it
        q_offset = q_offset.clone()
    seen = add_offsets_to_mask_function(function, q_offset, kv_offset)
    row, key = torch.arange(batch, device=device)[:, None, None, None], torch.arange(keys, device=device)
    head, query = torch.zeros_like(row[:1]), torch.arange(queries, device=device)[:, None]
    pairs = sparse.scanned(lambda rows: seen(row, head, query[rows], key).expand(batch, 1, -1, keys), queries, keys, batch)
    return sparse.assemble(pairs, seen, queries, keys, backward=True, kind=StructuredMask)


def _moved(x: Any, device: torch.device) -> Any:
    """`x` with the tensors in it, those that a function holds too, on `device`."""
    if isinstance(x, Tensor):
        return x.to(device)
    if isinstance(x, tuple | list):
        return type(x)(_moved(each, device) for each in x)
    if isinstance(x, FunctionType) and x.__closure__:
        cells = tuple(CellType(_moved(cell.cell_contents, device)) for cell in x.__closure__)
        return FunctionType(x.__code__, x.__globals__, x.__name__, x.__defaults__, cells)
    return x
