"""A bias that is a product of a number of the head and a number of the key, as further columns of queries and keys."""

from __future__ import annotations

import inspect
from functools import cache

from torch import Tensor
from transformers.integrations.flash_attention import get_target_dtype

from ..encodings.widths import Term, widened
from . import stock
from .call import Call

WIDTH = 8
"""Columns in all."""
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
    # What is the same for all keys of a query changes nothing, so small numbers are as good as large ones, and exacter.
    numbers = (numbers - numbers.amin(-1, keepdim=True))[:, None] / SHIFT
    query, key = widened(query.to(dtype), key.to(dtype), [Term(slopes[None, :, None] * SHIFT, numbers)], call.scaling)
    value = call.value.to(dtype)
    return stock.attention(call.backend, call.module, query, key, value, call.mask, scaling=call.scaling, **call.kwargs)[0].to(call.dtype)


@cache
def _takes_slopes():
    """The function of an installed flash attention that has ALiBi built in; None where there is none."""
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return None
    return flash_attn_func if "alibi_slopes" in inspect.signature(flash_attn_func).parameters else None
