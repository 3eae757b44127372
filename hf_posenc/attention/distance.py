"""Score biases through `scaled_dot_product_attention`, never held as a whole square.

A bias that depends only on the distance is a table t[h, i - j]. With its query rows reversed, a block of the Toeplitz
matrix t[h, i - j] becomes a Hankel matrix, and a Hankel matrix is a view of the table with strides (1, 1): nothing is
materialised, and the future is -inf in the table.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..encodings import PositionalEncoding
from . import dense
from .masks import Mask, visible

HANKEL_ROWS = 1024


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    encoding: PositionalEncoding,
    q_pos: Tensor,
    k_pos: Tensor,
    **kwargs,
) -> Tensor:
    """Output [B,Q,H,V]; arguments as for `posenc_attention`, with positions [B,Q] and [B,K]."""
    for unsupported in ("softcap", "s_aux"):
        if kwargs.get(unsupported) is not None:
            raise ValueError(f"sdpa has no {unsupported}; load the model with attn_implementation='eager'")
    if isinstance(mask, Tensor) and mask.is_floating_point():
        return dense.by_block(module, query, key, value, mask, encoding, q_pos, k_pos, **kwargs)
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    options = {"scale": kwargs.get("scaling"), "dropout_p": kwargs.get("dropout", 0.0)}
    square = mask is None and query.shape[2] == key.shape[2]
    if encoding.relative and square and bool((q_pos.diff(dim=-1) == 1).all()):
        output = hankel(query, key, value, distance_table(encoding, query.shape[2], query.device), **options)
    else:
        output = by_block(query, key, value, mask, encoding, q_pos, k_pos, **options)
    return output.transpose(1, 2).contiguous()


def distance_table(encoding: PositionalEncoding, length: int, device: torch.device) -> Tensor:
    """Bias of each head at distances 0 .. length - 1: [H, length] float32."""
    heads = torch.arange(encoding.geometry.num_heads, device=device)[:, None]
    distance = torch.arange(length, device=device)[None]
    return encoding.bias(heads, distance, torch.zeros_like(distance)).to(device)


def hankel(query: Tensor, key: Tensor, value: Tensor, table: Tensor, **options) -> Tensor:
    """Causal attention [B,H,L,V] with bias table[h, i - j]; query, key [B,H,L,D], table [H,L] float32."""
    length = query.shape[2]
    step = min(HANKEL_ROWS, length)
    future = table.new_full((table.shape[0], step - 1), -torch.inf)
    # Entry x belongs to j - i = x - (L - 1).
    line = torch.cat((table.flip(-1), future), -1).contiguous()

    def run(start: int, end: int) -> Tensor:
        rows = query[:, :, start:end].flip(2)
        bias = line.as_strided((1, len(line), end - start, end), (0, line.stride(0), 1, 1), length - end)
        return _sdpa(rows, key[:, :, :end], value[:, :, :end], bias, **options).flip(2)

    return _join(run, length, step, table.requires_grad)


def by_block(query: Tensor, key: Tensor, value: Tensor, mask: Mask, encoding, q_pos: Tensor, k_pos: Tensor, **options) -> Tensor:
    """Attention [B,H,Q,V] with the bias of each query block made when its turn comes; any positions, any mask."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    if q_pos.stride(0) == 0 and k_pos.stride(0) == 0:
        q_pos, k_pos = q_pos[:1], k_pos[:1]

    def run(start: int, end: int) -> Tensor:
        rows = slice(start, end)
        bias = encoding.bias_matrix(q_pos[:, rows], k_pos).to(query.device)
        bias = bias.masked_fill(~visible(mask, rows, num_queries, num_keys, query.device), -torch.inf)
        return _sdpa(query[:, :, rows], key, value, bias, **options)

    step = dense.block_rows(query.shape[0], query.shape[1], num_keys)
    return _join(run, num_queries, step, torch.is_grad_enabled())


def _join(run, length: int, step: int, recompute: bool) -> Tensor:
    """The blocks of `run` side by side; with `recompute`, the backward pass makes each block's bias again."""
    bounds = [(s, min(s + step, length)) for s in range(0, length, step)]
    parts = [checkpoint(run, *b, use_reentrant=False) if recompute else run(*b) for b in bounds]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, **options) -> Tensor:
    # The CPU kernel adds a float32 bias to half-precision scores; the others want the dtype of the query, and aligned rows.
    if query.device.type != "cpu":
        bias = bias.to(query.dtype).contiguous()
    elif query.dtype == torch.float64:
        bias = bias.double()
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, **options)
