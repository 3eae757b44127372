"""Encodings that rotate different parts of the score matrix differently.

Each region is attended to on its own, and the partial results are merged by their log-sum-exp, which is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..encodings import PositionalEncoding, Region
from . import dense
from .masks import Mask, visible

ROWS = 512


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    encoding: PositionalEncoding,
    regions: list[Region],
    q_pos: Tensor,
    k_pos: Tensor,
    **kwargs,
) -> Tensor:
    """Output [B,Q,H,V]; arguments as for `posenc_attention`, with positions [B,Q] and [B,K]."""
    if not _has_kernel(query, key, value, mask, encoding, kwargs):
        return dense.by_block(module, query, key, value, mask, encoding, q_pos, k_pos, **kwargs)
    merged = Merged(query)
    for region in regions:
        rows = _span(region.rows, query.shape[2])
        q, k = region.rotate(query[:, :, rows], key, q_pos[:, rows], k_pos)
        k, v = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (k, value))
        for start in range(rows.start, rows.stop, ROWS):
            block = slice(start, min(start + ROWS, rows.stop))
            pairs = _pairs(region, mask, block, q_pos, k_pos, query.shape[2])
            columns = _span(pairs.any(2)[:, 0], key.shape[2])
            if columns.stop > columns.start:
                local = slice(block.start - rows.start, block.stop - rows.start)
                merged.add(block, q[:, :, local], k[:, :, columns], v[:, :, columns], pairs[..., columns], kwargs.get("scaling"))
    return merged.output.to(query.dtype).transpose(1, 2).contiguous()


class Merged:
    """Attention over the keys seen so far: `output` [B,H,Q,D] float32 and its log-sum-exp [B,H,Q]."""

    def __init__(self, query: Tensor):
        self.output = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        self.lse = torch.full(query.shape[:3], -torch.inf, device=query.device)

    def add(self, rows: slice, query: Tensor, key: Tensor, value: Tensor, pairs: Tensor, scaling: float | None) -> None:
        """Attend from the query block `rows` to further keys, over the `pairs` [1 or B,1,rows,keys] that are True."""
        bias = torch.zeros(pairs.shape, dtype=torch.float32).masked_fill_(~pairs, -torch.inf)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        part, lse = kernel(query, key, value, attn_mask=bias, scale=scaling)
        lse = lse.masked_fill(~pairs.any(-1), -torch.inf)
        total = torch.logaddexp(self.lse[:, :, rows], lse)
        old, new = ((x - total).exp().nan_to_num(0.0)[..., None] for x in (self.lse[:, :, rows], lse))
        self.output[:, :, rows] = old * self.output[:, :, rows] + new * part
        self.lse[:, :, rows] = total


def _has_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Mask, encoding: PositionalEncoding, kwargs: dict) -> bool:
    """Whether PyTorch's fused CPU kernel, which returns the log-sum-exp, can be used. Its backward pass cannot be merged."""
    plain = not any(kwargs.get(name) for name in ("dropout", "softcap")) and kwargs.get("s_aux") is None
    same_width = query.shape[-1] == value.shape[-1] and query.dtype != torch.float64
    boolean = not (isinstance(mask, Tensor) and mask.is_floating_point())
    grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return query.device.type == "cpu" and plain and same_width and boolean and not grad and not encoding.has("bias")


def _pairs(region: Region, mask: Mask, rows: slice, q_pos: Tensor, k_pos: Tensor, num_queries: int) -> Tensor:
    """[1 or B,1,rows,K] bool: what the mask lets through and the region holds."""
    pairs = visible(mask, rows, num_queries, k_pos.shape[1], q_pos.device)
    if q_pos.stride(0) == 0 and k_pos.stride(0) == 0:
        q_pos, k_pos = q_pos[:1], k_pos[:1]
    if region.rows is not None:
        pairs = pairs & region.rows[:, None, rows, None]
    if region.contains is not None:
        pairs = pairs & region.contains(q_pos[:, None, rows, None], k_pos[:, None, None, :])
    return pairs


def _span(hit: Tensor | None, length: int) -> slice:
    """From the first to the last column of `hit` [B,length] that is True in any row."""
    if hit is None:
        return slice(0, length)
    columns = hit.any(0).nonzero()
    return slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 0)
