"""Flex attention written out densely: what the kernel of PyTorch computes, block structure included, on any device and differentiable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

Index = tuple[Tensor, Tensor, Tensor, Tensor]


def kernel(
    owner: object,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score_mod: Callable[..., Tensor] | None = None,
    block_mask: BlockMask | None = None,
    scaling: float = 1.0,
    lse: bool = False,
    options: object = None,
) -> tuple[Tensor, Tensor | None]:
    """Output [B,H,Q,V] in the dtype of the query, and the log-sum-exp [B,H,Q] in float32 where asked for; float64 throughout for float64.

    The blocks of the mask are taken at their word: a pair counts as often as its block is listed, pairs of full blocks without asking
    `mask_mod`. A query that sees nothing gives 0, and -inf.

    Args:
        owner: on whose behalf; of no interest here.
        query: [B,H,Q,D]. key: [B,G,K,D]. value: [B,G,K,V].
        options: of no interest here. score_mod: of broadcastable index tensors in int32.
    """
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    shared = query.shape[1] // key.shape[1]
    k, v = (x.to(wide).repeat_interleave(shared, 1) for x in (key, value))
    index = indices((*query.shape[:3], key.shape[2]), query.device)
    scores = query.to(wide) @ k.transpose(-1, -2) * scaling
    if score_mod is not None:
        scores = score_mod(scores, *index).to(wide)
    if block_mask is not None:
        times = occurrences(block_mask, index)
        scores = (scores + times.clamp(min=1).to(wide).log()).masked_fill(times == 0, -torch.inf)
    top = scores.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(wide).min)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    seen = total > 0
    total = torch.where(seen, total, 1.0)
    output = (weights / total @ v).to(query.dtype)
    return output, torch.where(seen, top + total.log(), -torch.inf)[..., 0] if lse else None


def indices(shape: tuple[int, int, int, int], device: torch.device) -> Index:
    """Indices of batch, head, query and key, each along its own axis."""
    b, h, q, k = (
        torch.arange(n, device=device, dtype=torch.int32).view([-1 if at == axis else 1 for at in range(4)]) for axis, n in enumerate(shape)
    )
    return b, h, q, k


def occurrences(mask: BlockMask, index: Index) -> Tensor:
    """How often each pair is attended to: 0 or 1 where the mask is sound; broadcastable to [B,H,Q,K]."""
    b, h, q, k = index
    times = _spread(mask, mask.kv_num_blocks, mask.kv_indices, index) * mask.mask_mod(b, h, q, k)
    if mask.full_kv_num_blocks is not None:
        times = times + _spread(mask, mask.full_kv_num_blocks, mask.full_kv_indices, index)
    return times


def blocks(count: Tensor, listed: Tensor, columns: int) -> Tensor:
    """How often each block is listed, [...,R,C], from the number of blocks of each row [...,R] and their columns [...,R,C or more]."""
    counted = torch.arange(listed.shape[-1], device=listed.device) < count[..., None]
    table = torch.zeros(*listed.shape[:-1], columns, dtype=torch.int32, device=listed.device)
    return table.scatter_add(-1, torch.where(counted, listed, 0).long(), counted.int())


def _spread(mask: BlockMask, count: Tensor, listed: Tensor, index: Index) -> Tensor:
    """`blocks`, by pair of query and key."""
    rows, columns = mask.BLOCK_SIZE
    table = blocks(count, listed, -(-index[3].shape[-1] // columns))
    return table[..., index[2][0, 0] // rows, index[3][0, 0] // columns]
