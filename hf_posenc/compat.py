"""Where versions of transformers differ, told by what they have and not by their numbers."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, cache_utils, masking_utils
from transformers.modeling_outputs import CausalLMOutputWithPast

CACHES = ("cache", "past_key_values")
"""What models have called the KV cache among their arguments; some of one version take it by the one name, some by the other."""
CACHE = next(f.name for f in dataclasses.fields(CausalLMOutputWithPast) if f.name in CACHES)
"""What the KV cache is called among the arguments and outputs of a model: `past_key_values` up to 5.23, `cache` from 5.24 on."""

CHECKPOINTING = "activation_checkpointing" if hasattr(PreTrainedModel, "activation_checkpointing_enable") else "gradient_checkpointing"
"""What arguments of Trainer and methods of a model call it that activations are computed again: `gradient_checkpointing` up to 5.22."""

RoundingLayer: Any = getattr(cache_utils, "BaseQuantizedLayer", cache_utils.QuantizedLayer)
"""The class of the layers of a KV cache that round what they hold: has a name of its own from 5.23 on."""

INDICES = "cache_position"
"""Up to 5.3 masks are made from the indices [Q] of the new tokens among all; from 5.4 on from how many there are, and the first index."""


def takes(function: Callable, name: str) -> bool:
    """Whether `function` has an argument of this name."""
    return name in inspect.signature(function).parameters


def longest(cache: Any) -> int | None:
    """How many tokens a KV cache has room for: -1 or None for any number. `get_max_cache_shape` up to 5.12."""
    return cache.get_max_length() if hasattr(Cache, "get_max_length") else cache.get_max_cache_shape()


def mask_sizes(cache: Any, queries: int, layer: int) -> tuple[int, int]:
    """How many keys a layer sees with so many new tokens, and the index of the first."""
    by_indices = takes(Cache.get_mask_sizes, INDICES)
    return cache.get_mask_sizes(torch.empty(queries, device="meta") if by_indices else queries, layer)


def by_sizes(make: Callable) -> Callable:
    """A function of transformers that makes the mask of a backend, called as from 5.4 on."""
    if not takes(make, INDICES):
        return make

    def called(batch_size: int, q_length: int, kv_length: int, q_offset: Any = 0, *args: Any, device: Any = "cpu", **kwargs: Any) -> Any:
        return make(batch_size, torch.arange(q_length, device=device) + q_offset, kv_length, *args, **kwargs)

    return called


def called_by_sizes(make: Callable) -> Callable:
    """One of ours, which is written to be called as from 5.4 on, as this transformers calls it."""
    if not takes(masking_utils.sdpa_mask, INDICES):
        return make

    @functools.wraps(make)
    def called(batch_size: int, cache_position: Tensor, kv_length: int, *args: Any, **kwargs: Any) -> Any:
        sizes = (batch_size, len(cache_position), kv_length, cache_position[0])
        return make(*sizes, *args, device=cache_position.device, **kwargs)

    return called


def without_indices(make: Callable) -> Callable:
    """A function of transformers that makes masks for a configuration, called as from 5.10 on: without the indices of the new tokens."""
    if not takes(make, INDICES):
        return make

    def called(config: Any, embeddings: Tensor, mask: Any, cache: Any, **kwargs: Any) -> Any:
        past = 0 if cache is None else cast(int, cache.get_seq_length())
        indices = torch.arange(past, past + embeddings.shape[1], device=embeddings.device)
        return make(config, embeddings, mask, indices, past_key_values=cache, **kwargs)

    return called


def nested_keys(config: Any, parameters: Mapping[str, Any]) -> list[str]:
    """The kinds of layers of a configuration that rotary parameters are nested under: `nested_rope_parameter_keys` from 5.18 on."""
    if hasattr(config, "nested_rope_parameter_keys"):
        return config.nested_rope_parameter_keys(parameters)
    return [key for key in parameters if key in (getattr(config, "layer_types", None) or ())]


sdpa_mask = by_sizes(masking_utils.sdpa_mask)
eager_mask = by_sizes(masking_utils.eager_mask)
flex_attention_mask = by_sizes(masking_utils.flex_attention_mask)
create_causal_mask = without_indices(masking_utils.create_causal_mask)
create_sliding_window_causal_mask = without_indices(masking_utils.create_sliding_window_causal_mask)
create_masks_for_generate = without_indices(masking_utils.create_masks_for_generate)
