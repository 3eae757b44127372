"""A bias that is a product of a number of the head and a number of the key, as further columns of queries and keys.

a_h x_j is added to the product of query and key by any kernel, flash attention among them, if the query has a_h for a column and the key
x_j. Half precision holds neither exactly, so both are written as sums of three numbers that it does hold, and the products of the six
pairs that matter are a column each: right to 2^-24 of the bias, which is what the kernel itself is right to.
"""

from __future__ import annotations

import inspect
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations.flash_attention import get_target_dtype

from . import stock
from .call import Call

PAIRS = ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0))
WIDTH = 8
"""Columns in all: kernels want a multiple of eight."""
WIDEST = 256
"""Heads that flash attention takes."""
SHIFT = 256.0
"""Moved from the numbers of the keys to those of the heads, so that float16 holds positions to 16 million."""


def attention(call: Call, query: Tensor, key: Tensor) -> Tensor:
    """Output [B,Q,H,V] from rotated `query` and `key`, by the flash attention that the model was loaded with."""
    slopes, numbers = call.encoding.columns(call.layout.k_pos)
    native = _takes_slopes() if call.backend == "flash_attention_2" else None
    plain = call.mask is None and call.layout.counted and call.kwargs.get("sliding_window") is None and not call.dropout
    if native is not None and plain and numbers is call.layout.k_pos:  # its ALiBi goes by the index, and so by the position
        q, k, v = (x.transpose(1, 2) for x in (query, key, call.value))
        return native(q, k, v, softmax_scale=call.scaling, causal=True, alibi_slopes=slopes.float())
    dtype = get_target_dtype(query, call.module) or query.dtype  # what the backend would round them to
    query, key = widened(query.to(dtype), key.to(dtype), slopes / call.scaling, numbers)
    value = call.value.to(dtype)
    return stock.attention(call.backend, call.module, query, key, value, call.mask, scaling=call.scaling, **call.kwargs)[0].to(call.dtype)


def widened(query: Tensor, key: Tensor, heads: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [B,H,Q,D+8] and keys [B,G,K,D+8] whose products are greater by heads[h] * (numbers[b,k] - the least of them).

    Args:
        query: [B,H,Q,D]. key: [B,G,K,D]. heads: [H]. numbers: [B,K].
    """
    # What is the same for all keys of a query changes nothing, so small numbers are as good as large ones, and exacter.
    numbers = numbers - numbers.amin(-1, keepdim=True)
    a, x = parts(heads * SHIFT, query.dtype), parts(numbers / SHIFT, key.dtype)
    a = F.pad(a[..., [i for i, _ in PAIRS]], (0, WIDTH - len(PAIRS)))[None, :, None]
    x = F.pad(x[..., [j for _, j in PAIRS]], (0, WIDTH - len(PAIRS)))[:, None]
    return torch.cat((query, a.expand(*query.shape[:3], -1)), -1), torch.cat((key, x.expand(*key.shape[:3], -1)), -1)


def parts(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[...,3] of `dtype`: three numbers whose sum is `x` to float32."""
    rest, found = x.to(torch.float32), []
    for _ in range(3):
        found.append(rest.to(dtype))
        rest = rest - found[-1].to(torch.float32)
    return torch.stack(found, -1)


@cache
def _takes_slopes():
    """The function of an installed flash attention that has ALiBi built in; None where there is none."""
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return None
    return flash_attn_func if "alibi_slopes" in inspect.signature(flash_attn_func).parameters else None
