"""Reading the masks that transformers makes for its backends, whatever their form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

Mask = Tensor | BlockMask | None
ByIndex = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""What there is for a pair, by the indices of batch, head, query and key: as flex attention asks."""


def visible(mask: Mask, rows: slice, num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """Which keys the queries of `rows` see: [B or 1, H or 1, rows, K] bool, H where the mask has heads.

    Args:
        mask: None (plain causal), [B,H or 1,Q,K] bool or additive float, [B,K] bool padding, or a flex `BlockMask`.
        rows: a block of queries. num_queries: Q. num_keys: K.
    """
    if isinstance(mask, BlockMask):
        return _evaluate(mask, rows, num_keys, device)
    if mask is not None and mask.ndim == 4:
        part = mask[:, :, rows, :num_keys]
        return part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2
    causal = _causal(rows, num_queries, num_keys, device)
    return causal if mask is None else causal & mask[:, None, None, -num_keys:].bool()


def settled(x: Tensor) -> Tensor:
    """`x`, for a function within flex attention to read; in a graph, as what lies in memory.

    The compiler would have the kernel read a view of what has not been computed yet, and fail (PyTorch 2.13).
    """
    if not torch.compiler.is_compiling():
        return x
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())


def additive(mask: Mask, rows: slice) -> Tensor | None:
    """Numbers that a float mask adds to the scores, beyond hiding keys; None for the other forms."""
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.is_floating_point():
        return mask[:, :, rows]
    return None


def only(mask: Mask, chosen: Tensor, num_keys: int) -> Tensor:
    """`mask` where each query sees no more than the keys `chosen` [B,Q,n], by index: [B,1,Q,K] bool, or additive as `mask` is."""
    num_queries = chosen.shape[1]
    picked = torch.zeros(*chosen.shape[:2], num_keys, dtype=torch.bool, device=chosen.device).scatter(-1, chosen.long(), True)[:, None]
    if (numbers := additive(mask, slice(None))) is not None:
        return numbers[..., :num_keys].masked_fill(~picked, torch.finfo(numbers.dtype).min)
    return picked & visible(mask, slice(0, num_queries), num_queries, num_keys, chosen.device)


def key_positions(q_pos: Tensor, mask: Mask, num_keys: int) -> Tensor:
    """Positions [B,K] of the keys, cached ones included, given those of the queries [B,Q].

    Without a cache the keys are the queries. Otherwise the keys of these queries lie somewhere behind the cached ones, which are one
    position apart, padding skipped: counting back from a query that is no padding is right for every cache (dynamic, static, sliding)
    and for any offset.
    """
    num_queries = q_pos.shape[-1]
    if num_keys == num_queries:
        return q_pos
    steps = torch.arange(num_keys, device=q_pos.device)
    if mask is None:
        # One decoding step sees every key; a longer prefill into an empty static cache sees the first Q.
        return q_pos + (steps - (num_keys - 1)) if num_queries == 1 else q_pos[:, :1] + steps
    if isinstance(mask, Tensor) and mask.ndim == 2:  # of flash attention, for which the queries are the last of the keys
        return q_pos[:, -1:] + 1 - mask[:, -num_keys:].long().flip(-1).cumsum(-1).flip(-1)
    seen = visible(mask, slice(None), num_queries, num_keys, q_pos.device).any(1)
    # A query sees its own key last, unless it is padding and sees only keys before that.
    last = (num_keys - 1 - seen.flip(-1).to(torch.uint8).argmax(-1)).where(seen.any(-1), -num_keys)
    offset, real = (last - torch.arange(num_queries, device=last.device)).max(-1, keepdim=True)
    rank = seen.any(-2).long().cumsum(-1)
    batch = max(len(q_pos), len(seen))
    q_pos, real, own = q_pos.expand(batch, -1), real.expand(batch, -1), (steps - offset).expand(batch, -1)
    anchor = last.gather(-1, real[: len(last)]).clamp(min=0)  # a row of nothing but padding has none, and needs none
    counted = q_pos.gather(-1, real) - (rank.gather(-1, anchor) - rank)
    here = q_pos.gather(-1, own.clamp(0, num_queries - 1))
    return torch.where((own >= 0) & (own < num_queries), here, counted)


def _causal(rows: slice, num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    # transformers leaves the mask out when Q == K, for one query that sees all, and for a prefill that fills the front of a static cache.
    offset = num_keys - 1 if num_queries == 1 else 0
    queries = torch.arange(num_queries, device=device)[rows, None] + offset
    return (torch.arange(num_keys, device=device) <= queries)[None, None]


def _evaluate(mask: BlockMask, rows: slice, num_keys: int, device: torch.device) -> Tensor:
    batch = torch.arange(mask.shape[0], device=device)[:, None, None, None]
    queries = torch.arange(mask.shape[-2], device=device)[rows][None, None, :, None]
    keys = torch.arange(num_keys, device=device)[None, None, None, :]
    heads = torch.arange(mask.shape[1], device=device)[None, :, None, None]
    return mask.mask_mod(batch, heads, queries, keys).expand(len(batch), mask.shape[1], queries.shape[2], num_keys)


def by_index(x: Tensor) -> ByIndex:
    """What is in `x`, of four axes that may be of length 1."""
    x, (batch, heads, queries, keys) = settled(x), (int(n > 1) for n in x.shape)

    def looked_up(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return x[b * batch, h * heads, q * queries, k * keys]

    return looked_up
