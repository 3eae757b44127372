"""Attention by block of queries, for whatever has no path of its own: linear in memory, and the backward pass makes the blocks again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..encodings import Region
from ..encodings.base import at_hand
from . import dense
from .call import Call
from .kernels import fused
from .layout import Segment, blocks_of
from .masks import additive, visible

BLOCK_BYTES = 1 << 25
"""Scores in float32 of one block, on a CPU: what its caches hold."""
MOST_BYTES = 1 << 32
SHARE = 16
"""Of the free memory of an accelerator, what part the scores of one block may take, which are there several times over."""


def attention(call: Call, regions: list[Region]) -> Tensor:
    """Output [B,Q,H,V]; queries that see nothing give something finite."""
    shape = (len(call.query), call.query.shape[2], call.query.shape[1], call.value.shape[-1])
    output = call.query.new_zeros(shape)
    grad = torch.is_grad_enabled()

    def once(segment: Segment, rows: slice, keys: slice) -> Tensor:
        hidden = _hidden(call, segment, rows, keys)
        if grad or call.place != "cpu" or not call.has_plain_softmax or hidden is None or call.regional or _reads_weights(call):
            return dense.attend(call, segment.batch, rows, keys, hidden)[0]
        return _biased(call, segment.batch, rows, keys, hidden, regions[0])

    again = partial(checkpoint, once, use_reentrant=False, preserve_rng_state=call.dropout > 0)
    for segment, rows, keys in _blocks(call):
        part = (again if grad else once)(segment, rows, keys)
        output[segment.batch, rows] = part.transpose(1, 2)
    return output


def _reads_weights(call: Call) -> bool:
    """Whether the encoding does more to the scores than to add to them."""
    return call.encoding.has("mix", "normalise", "attended")


def _blocks(call: Call) -> Iterator[tuple[Segment, slice, slice]]:
    """Segment, queries and keys of each block."""
    layout = call.layout
    whole = Segment(slice(None), slice(0, layout.num_queries), slice(0, layout.num_keys), 0)
    causal = call.mask is None and layout.num_queries == layout.num_keys
    for segment in [whole] if layout.segments is None else layout.segments:
        size = max(16, _budget(call) // (4 * len(call.query[segment.batch]) * call.query.shape[1] * layout.num_keys))
        for rows in blocks_of(segment.rows, size):
            last = segment.offset + rows.stop if layout.segments is not None or causal else segment.keys.stop
            yield segment, rows, slice(segment.first_key(rows.start), last)


def _budget(call: Call) -> int:
    """Bytes for the scores of one block: on an accelerator as many as there is room for, since every block is a number of launches."""
    if call.place in ("cpu", "meta") or torch.compiler.is_compiling():
        return BLOCK_BYTES
    return call.layout.once("free", lambda: max(BLOCK_BYTES, min(MOST_BYTES, _free(call.query.device) // SHARE)))


def _free(device: torch.device) -> int:
    """Bytes that can still be allocated on an accelerator; what its allocator holds in reserve is among them."""
    module = torch.get_device_module(device)
    if device.type == "mps":
        return module.recommended_max_memory() - module.current_allocated_memory()
    if not hasattr(module, "mem_get_info"):
        return SHARE * BLOCK_BYTES
    return module.mem_get_info(device)[0] + module.memory_reserved(device) - module.memory_allocated(device)


def _hidden(call: Call, segment: Segment, rows: slice, keys: slice) -> Tensor | None:
    """[B or 1,H or 1,rows,keys] bool: the pairs that do not meet; None where a mask of numbers says so."""
    layout, device = call.layout, call.query.device
    if additive(call.mask, rows) is not None:
        return None
    if layout.segments is None:
        return ~visible(call.mask, rows, layout.num_queries, layout.num_keys, device)[..., keys]
    own = torch.arange(rows.start, rows.stop, device=device)[:, None] + segment.offset
    column = torch.arange(keys.start, keys.stop, device=device)
    hidden = column > own
    return (hidden if segment.window is None else hidden | (column <= own - segment.window))[None, None]


def _biased(call: Call, batch: slice, rows: slice, keys: slice, hidden: Tensor, region: Region) -> Tensor:
    """A block through `scaled_dot_product_attention` of a CPU, whose kernels take a bias in float32: [B,H,rows,V]."""
    q, k, v = call.query[batch, :, rows], call.key[batch, :, keys], call.value[batch, :, keys]
    bias = dense.biases(call, batch, rows, keys, q, k)
    bias = _masked(torch.zeros((), device=q.device) if bias is None else bias, hidden)
    q, k = region.rotate(q, k, call.layout.q_pos[batch, rows], call.layout.k_pos[batch, keys])
    bias = bias.to(torch.promote_types(q.dtype, torch.float32))
    if call.tileable and len(bias) == 1:
        return fused(q, k, v, bias[0].expand(q.shape[1], -1, -1).unflatten(0, (k.shape[1], -1)), call.scaling)[0]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=call.scaling)


def _masked(bias: Tensor, hidden: Tensor) -> Tensor:
    """`bias` with -inf where `hidden` [B or 1,H or 1,rows,keys]: in place, in the columns that any row hides, if it is a whole tensor."""
    if not at_hand(hidden) or bias.shape != torch.broadcast_shapes(bias.shape, hidden.shape) or 0 in bias.stride():
        return bias.masked_fill(hidden, -torch.inf)
    columns = hidden.any(-2).flatten(0, -2).any(0).nonzero()[:, 0]
    if len(columns):
        part = slice(int(columns[0]), int(columns[-1]) + 1)
        bias[..., part].masked_fill_(hidden[..., part], -torch.inf)
    return bias
