"""Numbers beside those of a head: further columns of queries and keys, exact in half precision too.

A product of a number of the query and one of the key is added to a score by any kernel, flash attention among them, if both are columns.
Half precision holds neither exactly, so each is written as a sum of three numbers that it does hold, and the products of the six pairs
that matter are a column each: right to 2^-24, which is what the kernel itself is right to. What is 1 needs no such care.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

HALF = (torch.float16, torch.bfloat16)
PAIRS = ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0))
MULTIPLE = 8
"""Of columns: kernels want it."""
FLOAT16_SCALE = 16.0
"""By which float16 holds numbers divided, up to a million."""


class Term(NamedTuple):
    """What is added to a score: a number of the query, [1 or B,1 or H,Q], times one of the key, [1 or B,1 or G or H,K]; None for 1."""

    query: Tensor | None
    key: Tensor | None


def parts(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[...,3] of `dtype`: three numbers whose sum is `x` to float32; [...,1] where `dtype` holds it itself."""
    if dtype not in HALF:
        return x.to(dtype)[..., None]
    rest, found = x.to(torch.float32), []
    for _ in range(3):
        found.append(rest.to(dtype))
        rest = rest - found[-1].to(torch.float32)
    return torch.stack(found, -1)


def packed(x: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """States [B,A,Q,n], with A one of 1, `heads` and a multiple of it, as columns [B,heads,Q,c] of `dtype`."""
    x = x.expand(-1, heads, -1, -1) if x.shape[1] == 1 else x
    scale = FLOAT16_SCALE if dtype == torch.float16 else 1.0
    return parts(x.unflatten(1, (heads, -1)).transpose(2, 3).flatten(3) / scale, dtype).flatten(3)


def unpacked(columns: Tensor, of: int, dtype: torch.dtype) -> Tensor:
    """The states [B,of,Q,n] in `dtype` that `packed` has made [B,G,Q,c] of."""
    heads = columns.shape[1]
    scale = FLOAT16_SCALE if columns.dtype == torch.float16 else 1.0
    x = columns.unflatten(-1, (-1, 3)).to(dtype).sum(-1) * scale if columns.dtype in HALF else columns.to(dtype)
    x = x[:, :1] if of == 1 else x
    return x.unflatten(-1, (max(of // heads, 1), -1)).transpose(2, 3).flatten(1, 2)


def width_of(state: Tensor, heads: int, dtype: torch.dtype) -> int:
    """Columns that `packed` makes of states [B,A,Q,n]."""
    return max(state.shape[1] // heads, 1) * state.shape[-1] * (3 if dtype in HALF else 1)


def widened(q: Tensor, k: Tensor, terms: list[Term], scaling: float) -> tuple[Tensor, Tensor]:
    """Queries [B,H,Q,D+c] and keys [B,G,K,D+c] whose products, times `scaling`, are greater by the sum of `terms`.

    Args:
        q: [B,H,Q,D]. k: [B,G,K,D].
    """
    pairs = [_columns(term, q, k, scaling) for term in terms]
    left, right = (torch.cat(x, -1) for x in zip(*pairs, strict=True))
    spare = -left.shape[-1] % MULTIPLE
    return torch.cat((q, F.pad(left, (0, spare))), -1), torch.cat((k, F.pad(right, (0, spare))), -1)


def _columns(term: Term, q: Tensor, k: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Of one term: [B,H,Q,c] and [B,G,K,c]."""
    (batch, heads, queries, _), (_, groups, keys, _) = q.shape, k.shape
    one = q.new_ones(1, 1, 1, 1)
    if term.key is None:
        assert term.query is not None
        left = parts(term.query / scaling, q.dtype)
        return left.expand(batch, heads, queries, -1), one.to(k.dtype).expand(batch, groups, keys, left.shape[-1])
    if term.query is None:
        right = parts(term.key / scaling, k.dtype)
        left = one.expand(1, 1, 1, right.shape[-1])
    else:
        left, right = parts(term.query / scaling, q.dtype), parts(term.key, k.dtype)
        if left.shape[-1] > 1:
            left = torch.cat([left[..., i : i + 1] for i, _ in PAIRS], -1)  # a list of numbers would have to be copied to the device
            right = torch.cat([right[..., j : j + 1] for _, j in PAIRS], -1)
    left, shared = left.expand(batch, heads, queries, -1), right.shape[1] in (1, groups)
    if shared:
        return left, right.expand(batch, groups, keys, -1)
    return own_columns(left, groups), shared_columns(right.expand(batch, -1, keys, -1), groups)


def shared_columns(x: Tensor, groups: int) -> Tensor:
    """Numbers [B,H,K,c] of query heads beside the keys that H / G of them share, as columns of the keys: [B,G,K,c*H/G]."""
    return x.unflatten(1, (groups, -1)).transpose(2, 3).flatten(3)


def own_columns(x: Tensor, groups: int) -> Tensor:
    """Numbers [B,H,Q,c] as columns of queries [B,H,Q,c*H/G] that meet those of the same head among `shared_columns`."""
    each = x.shape[1] // groups
    own = torch.eye(each, dtype=x.dtype, device=x.device).repeat(groups, 1)[None, :, None, :, None]
    return (x[..., None, :] * own).flatten(3)
