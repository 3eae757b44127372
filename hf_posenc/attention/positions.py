"""The positions of the new tokens, settled once a forward pass, before the first layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ..compat import longest, mask_sizes
from .cached import cache_in
from .places import AXES, COUNTED, follow


def resolve(arguments: dict[str, Any]) -> Tensor:
    """Positions [1 or B,Q] of the tokens that a backbone is called with, in tokens.

    What the caller gives stands. Otherwise positions count the real tokens of the 2-D attention mask, so that padding on
    the left is invisible (stock GPT-2 counts it), or go on from the length of the cache.

    Args:
        arguments: keyword arguments of the call: `input_ids` or `inputs_embeds`, `attention_mask`, `position_ids`, and a cache. Tokens
            are [B,Q], or [B,choices,Q] where the backbone makes one batch of them. Position ids on several axes (`on_axes`) give those
            of the text where they come first of four; three, of time, height and width, say nothing of the order of tokens.
    """
    given, tokens = arguments.get("position_ids"), arguments.get("input_ids")
    device, length = (tokens.device, tokens.shape[-1]) if tokens is not None else _of_embeddings(arguments["inputs_embeds"])
    if given is not None and on_axes(arguments):
        given = given[0] if len(given) == 4 else None
    if given is not None:
        # A tensor of this forward pass alone, by which its layers know each other.
        return follow(given.reshape(-1, length) if given.ndim > 2 and tokens is not None and tokens.ndim > 2 else given[...])
    mask, cache = arguments.get("attention_mask"), cache_in(arguments)
    if isinstance(mask, Tensor) and mask.ndim == (2 if tokens is None else tokens.ndim):
        counted = (mask.flatten(0, -2).long().cumsum(-1) - 1).clamp(min=0)[:, columns_of(mask, cache, length)].to(device)
    else:
        counted = (torch.arange(length, device=device) + (0 if cache is None else cache.get_seq_length()))[None]
    if not torch.compiler.is_compiling():
        setattr(counted, COUNTED, True)
    return follow(counted)


def columns_of(mask: Tensor, cache: Cache | None, length: int) -> slice | Tensor:
    """Where in a mask [...,K] the new tokens are: last, but in one that is as long as a static cache (BLOOM in `generate`)."""
    if cache is None or not length < mask.shape[-1] == longest(cache):
        return slice(-length, None)
    return cache.get_seq_length() + torch.arange(length, device=mask.device)


def on_axes(arguments: dict[str, Any]) -> bool:
    """Whether the position ids of a call have several axes, as [n,B,Q]: M-RoPE (Qwen2-VL, arXiv:2409.12191) has three, or four with the
    text before; axes of two or more."""
    given, tokens = arguments.get("position_ids"), arguments.get("input_ids")
    return isinstance(given, Tensor) and given.ndim == 3 and (tokens is None or tokens.ndim == 2)


def on_every_axis(pos: Tensor) -> Tensor:
    """The positions that a rotary module takes, [B,Q] or [3,B,Q], where `pos` are settled ones."""
    axes = getattr(pos, AXES, None)
    return pos if axes is None else axes[-3:]


def bound(arguments: dict[str, Any], pos: Tensor) -> int | None:
    """A position that none of `pos`, as `resolve` has settled them, lies past; None where only the numbers in `pos` tell.

    Positions that are given beside a filled cache are taken to go on from it.
    """
    mask, cache, length = arguments.get("attention_mask"), cache_in(arguments), pos.shape[-1]
    past = 0 if cache is None else cache.get_seq_length()
    if (counted := hasattr(pos, COUNTED)) and isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.shape[-1] - 1
    if counted or (past > 0 if isinstance(past, int) else length == 1):  # a static cache keeps its length on the device
        return (length if cache is None else sum(mask_sizes(cache, length, 0))) - 1
    return None


def length_of(arguments: dict[str, Any]) -> int:
    """How many tokens a row has that a backbone is called with."""
    tokens = arguments.get("input_ids")
    return tokens.shape[-1] if tokens is not None else arguments["inputs_embeds"].shape[-2]


def _of_embeddings(x: Tensor) -> tuple[torch.device, int]:
    return x.device, x.shape[-2]
