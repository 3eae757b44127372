"""Biases that depend only on the distance: a table t[h, i - j], never held as a square.

With its query rows reversed, a block of the Toeplitz matrix t[h, i - j] becomes a Hankel matrix, and a Hankel matrix is a
view of the table with strides (1, 1): nothing is materialised. The future, and what lies beyond a sliding window, is -inf in the table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..encodings import PositionalEncoding
from . import tiles
from .call import Call
from .layout import Layout, Segment, blocks_of
from .tiles import Tile


def attention(call: Call) -> Tensor:
    """Output [B,Q,H,V] of a call that is `tileable`, for a relative encoding."""
    layout, encoding = call.layout, call.encoding
    pieces = layout.once(plan, lambda: plan(layout))
    # With gradients each layer makes its own, because gradient checkpointing runs layers again.
    wide = torch.float64 if call.query.dtype == torch.float64 else torch.long
    line = (
        bias_line(encoding, layout, wide)
        if torch.is_grad_enabled()
        else layout.once((encoding, wide), lambda: bias_line(encoding, layout, wide))
    )
    return tiles.attention(pieces, call.query, call.key, call.value, line, call.scaling)


def distance_table(encoding: PositionalEncoding, length: int, device: torch.device, dtype: torch.dtype = torch.long) -> Tensor:
    """Bias of each head at distances 0 .. length - 1: [H, length] float32, or float64 where positions of that `dtype` are asked for.

    The kernels read the table in that dtype alone, whatever the encoding returns.
    """
    heads = torch.arange(encoding.geometry.num_heads, device=device)[:, None]
    distance = torch.arange(length, device=device, dtype=dtype)[None]
    bias = encoding.bias(heads, distance, torch.zeros_like(distance))
    return bias.to(device, torch.float64 if dtype == torch.float64 else torch.float32).expand(len(heads), length)


def reach(layout: Layout) -> int:
    """Distances 0 .. reach - 1 occur."""
    assert layout.segments is not None
    return max((s.keys.stop - s.keys.start for s in layout.segments), default=1)


def bias_line(encoding: PositionalEncoding, layout: Layout, dtype: torch.dtype) -> Tensor:
    """[H,X]: the biases from the greatest distance down to 0, then the future."""
    table = distance_table(encoding, reach(layout), layout.q_pos.device, dtype)
    window = layout.segments[0].window if layout.segments else None  # the same in all
    if window is not None:
        table = table.masked_fill(torch.arange(table.shape[1], device=table.device) >= window, -torch.inf)
    future = table.new_full((len(table), min(tiles.ROWS, layout.num_queries) - 1), -torch.inf)
    return torch.cat((table.flip(-1), future), -1)


def plan(layout: Layout) -> list[Tile]:
    """Blocks of queries, each against the keys it can see."""
    longest = reach(layout)
    return [_tile(segment, rows, longest) for segment in layout.segments or [] for rows in blocks_of(segment.rows, tiles.ROWS)]


def _tile(segment: Segment, rows: slice, longest: int) -> Tile:
    keys = slice(segment.first_key(rows.start), segment.offset + rows.stop)
    return Tile(segment.batch, rows, keys, start=longest - (keys.stop - keys.start))
