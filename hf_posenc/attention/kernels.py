"""PyTorch's fused CPU kernel, forward and backward, on keys that groups of heads share."""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import blocks_of

TABLE_BYTES = 1 << 23
"""Scores in float32 that the gradient of a table looks at in one go."""


def fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """One fused call: output [B,H,Q,D] and log-sum-exp [B,H,Q]. Keys are not copied for the heads that share them.

    Args:
        query: [B,H,Q,D]. key, value: [B,G,K,D]. bias: broadcastable to [G,H/G,Q,K]; the same for all of the batch.
    """
    shape = (len(query), key.shape[1], -1)
    if query.shape[2] == 1:  # the heads of a group become its queries
        bias = None if bias is None else bias.squeeze(2)[None]
        output, lse = _flash(query.reshape(*shape, query.shape[-1]), key, value, bias, scaling)
        return output.reshape(query.shape), lse.reshape(query.shape[:3])
    if _one_by_one(query, bias):
        parts = [fused(q[None], k[None], v[None], bias, scaling) for q, k, v in zip(query, key, value, strict=True)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    k, v = _shared(query, key), _shared(query, value)
    output, lse = _flash(_by_group(query, key), k, v, bias, scaling)
    return output.unflatten(0, shape[:2]).flatten(1, 2), lse.unflatten(0, shape[:2]).flatten(1, 2)


def fused_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, bias: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value of one piece, given the merged output [B,H,Q,D] and log-sum-exp [B,H,Q] of its queries."""
    if _one_by_one(query, bias):
        each = zip(*(x.split(1) for x in (grad, query, key, value, output, lse)), strict=True)
        parts = [fused_backward(g, q, k, v, out, total, bias, scaling) for g, q, k, v, out, total in each]
        dq, dk, dv = (torch.cat(x) for x in zip(*parts, strict=True))
        return dq, dk, dv
    g, q, out, total = (_by_group(x, key) for x in (in_rows(grad), query, output, lse))
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    k, v = _shared(query, key), _shared(query, value)
    dq, dk, dv = backward(g, q, k, v, out, total, 0.0, False, attn_mask=bias, scale=scaling)
    return dq.unflatten(0, key.shape[:2]).flatten(1, 2), *(x.sum(1).unflatten(0, key.shape[:2]) for x in (dk, dv))


def explicit_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, bias: Tensor, scaling: float, line: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by plain matrix products, a few rows at a time, adding the gradient of the biases to `line` [H,X]."""
    groups, length, num_keys = key.shape[1], query.shape[2], key.shape[2]
    g, q, k, v, out = (x.to(lse.dtype) for x in (grad, query, key, value, output))
    dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
    step = max(16, TABLE_BYTES // (4 * query.shape[0] * query.shape[1] * num_keys))
    for rows in blocks_of(slice(0, length), step):
        # [B,G,H/G * rows,...]: the heads that share keys side by side, so that one product serves them all.
        fold = (len(q), groups, -1)
        gr, qr = (x[:, :, rows].reshape(*fold, x.shape[-1]) for x in (g, q))
        scores = (qr @ k.transpose(-1, -2)).mul_(scaling).view(len(q), groups, -1, rows.stop - rows.start, num_keys)
        scores.add_(bias[:, :, rows]).sub_(lse[:, :, rows].unflatten(1, (groups, -1))[..., None])
        weights = scores.exp_().view(*fold, num_keys)
        dv += weights.transpose(-1, -2) @ gr
        inner = (g[:, :, rows] * out[:, :, rows]).sum(-1).reshape(*fold, 1)
        ds = (gr @ v.transpose(-1, -2)).sub_(inner).mul_(weights)
        dk += (ds.transpose(-1, -2) @ qr).mul_(scaling)
        dq[:, :, rows] = (ds @ k).mul_(scaling).view(dq[:, :, rows].shape)
        add_diagonals(ds.view(len(q), -1, rows.stop - rows.start, num_keys).sum(0), line[:, rows.start :])
    return dq, dk, dv


def add_diagonals(x: Tensor, line: Tensor) -> None:
    """Add entry [h,r,c] of `x` [H,R,C] to entry r + c of `line` [H,X]."""
    heads, rows, columns = x.shape
    wide = rows + columns - 1
    # Rows of `wide` entries, each written one entry further right than the one before.
    skewed = x.new_zeros(heads, rows * (wide + 1))
    skewed.as_strided(x.shape, (skewed.stride(0), wide + 1, 1)).copy_(x)
    line[:, :wide] += skewed[:, : rows * wide].view(heads, rows, wide).sum(1)


def in_rows(x: Tensor) -> Tensor:
    """`x` with the numbers of a row side by side: the fused CPU kernel takes them for that, however they lie."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _one_by_one(query: Tensor, bias: Tensor | None) -> bool:
    """A bias that differs by head cannot be broadcast over a batch that is folded into the heads."""
    return bias is not None and len(bias) > 1 and len(query) > 1


def _by_group(x: Tensor, key: Tensor) -> Tensor:
    """[B,H,...] -> [B*G,H/G,...]"""
    return x.unflatten(1, (key.shape[1], -1)).flatten(0, 1)


def _shared(query: Tensor, x: Tensor) -> Tensor:
    """Keys or values `x` [B,G,K,D] as [B*G,H/G,K,D]: every head of a group sees them without a copy."""
    return x.flatten(0, 1)[:, None].expand(-1, query.shape[1] // x.shape[1], -1, -1)


def _flash(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=bias, scale=scaling)
