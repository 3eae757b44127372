"""The positions of the new tokens, settled once a forward pass, before the first layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .cached import cache_in


def resolve(arguments: dict[str, Any]) -> Tensor:
    """Positions [1 or B,Q] of the tokens that a backbone is called with, in tokens.

    What the caller gives stands. Otherwise positions count the real tokens of the 2-D attention mask, so that padding on
    the left is invisible (stock GPT-2 counts it), or go on from the length of the cache.

    Args:
        arguments: keyword arguments of the call: `input_ids` or `inputs_embeds`, `attention_mask`, `position_ids`, and a cache
    """
    if arguments.get("position_ids") is not None:
        return arguments["position_ids"][...]  # a tensor of this forward pass alone, by which its layers know each other
    tokens = arguments.get("input_ids")
    tokens = arguments["inputs_embeds"] if tokens is None else tokens
    mask, cache = arguments.get("attention_mask"), cache_in(arguments)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :].to(tokens.device)
    past = 0 if cache is None else cache.get_seq_length()
    return (torch.arange(tokens.shape[1], device=tokens.device) + past)[None]
