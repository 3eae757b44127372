"""Score biases inside flex attention, computed in the kernel from a table or from the positions."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers.integrations.flex_attention import flex_attention_forward

from ..encodings import PositionalEncoding
from ..encodings.base import has_values
from .call import Call
from .distance import distance_table


class LazyBias:
    """Stands where transformers indexes a dense `position_bias` [B,H,Q,K] in its `score_mod`, and computes the one number asked for."""

    def __init__(self, encoding: PositionalEncoding, q_pos: Tensor, k_pos: Tensor):
        self.encoding, self.q_pos, self.k_pos, self.table = encoding, q_pos, k_pos, None
        if encoding.relative and has_values(q_pos) and not torch.compiler.is_compiling():
            self.table = distance_table(encoding, int(q_pos.max()) + 1, q_pos.device)

    def __getitem__(self, index: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        b, h, i, j = index
        q_pos, k_pos = self.q_pos[b, i], self.k_pos[b, j]
        if self.table is None:
            return self.encoding.bias(h, q_pos, k_pos)
        return self.table[h, (q_pos - k_pos).clamp(min=0, max=self.table.shape[1] - 1)]


def attention(call: Call, query: Tensor, key: Tensor) -> Tensor:
    """Output [B,Q,H,V], from rotated `query` and `key`."""
    bias = LazyBias(call.encoding, call.layout.q_pos.contiguous(), call.layout.k_pos.contiguous())
    mask, options = cast(Any, call.mask), call.kwargs
    return flex_attention_forward(
        call.module, query, key, call.value, mask, scaling=call.scaling, position_bias=cast(Any, bias), **options
    )[0]
