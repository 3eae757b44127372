"""Score biases inside flex attention, computed in the kernel from a table or from the positions."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from transformers.integrations.flex_attention import flex_attention_forward

from ..encodings import PositionalEncoding
from .distance import distance_table
from .masks import Mask


class LazyBias:
    """Stands where transformers indexes a dense `position_bias` [B,H,Q,K] in its `score_mod`, and computes the one number asked for."""

    def __init__(self, encoding: PositionalEncoding, q_pos: Tensor, k_pos: Tensor):
        self.encoding, self.q_pos, self.k_pos = encoding, q_pos, k_pos
        self.table = distance_table(encoding, int(q_pos.max()) + 1, q_pos.device) if encoding.relative else None

    def __getitem__(self, index: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        b, h, i, j = index
        q_pos, k_pos = self.q_pos[b, i], self.k_pos[b, j]
        if self.table is None:
            return self.encoding.bias(h, q_pos, k_pos)
        return self.table[h, (q_pos - k_pos).clamp(min=0, max=self.table.shape[1] - 1)]


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
    bias = LazyBias(encoding, q_pos.contiguous(), k_pos.contiguous())
    return flex_attention_forward(module, query, key, value, cast(Any, mask), position_bias=cast(Any, bias), **kwargs)[0]
