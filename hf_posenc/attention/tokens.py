"""What encodings note of each token that they read, for the token after it: numbers beside the keys of one layer in the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache

from ..compat import RoundingLayer
from ..encodings import PositionalEncoding, Text
from ..encodings.widths import packed, unpacked, width_of
from .cached import SeenCache, by_name, cache_in, length_of, no_continuous_batching
from .masks import visible
from .places import AXES
from .positions import columns_of
from .reading import Order
from .settled import Settled

NOTES = "posenc_notes"
"""Attribute of settled positions that holds the numbers [B,1,Q,1+n] that are noted of the tokens there: the position, and `notes`."""
READING = ("embed_text", "locate")
"""Stages that look at tokens."""
NOWHERE = -2
"""What is noted as the position of padding: no token goes on from it."""


def embedded(backbone: Any, arguments: dict[str, Any], encoding: PositionalEncoding, pos: Tensor, layers: Sequence[int]) -> dict[str, Any]:
    """The arguments of a backbone, with the embeddings as `encoding` makes them of the tokens at `pos` [1 or B,Q]; what it says of their
    positions on several axes, and what it notes of them, is left on `pos`.

    Args:
        layers: those of the encoding; what it has noted of earlier tokens is in the cache of the first.
    """
    ids, x = arguments.get("input_ids"), arguments.get("inputs_embeds")
    reading = _Reading(backbone, arguments, encoding, pos, layers[0]) if encoding.has(*READING) else None
    if reading is not None and encoding.has("locate"):
        setattr(pos, AXES, reading.order.spread(encoding.locate(reading.text).movedim(0, -1)).movedim(-1, 0))
    if not encoding.has("embed", "embed_text"):
        return arguments
    x = backbone.get_input_embeddings()(ids) if x is None else x
    if x.ndim > 3:
        raise ValueError("an encoding of the embeddings takes 2-D input_ids, [batch, tokens]: flatten the choices into the batch")
    x = encoding.embed(x, pos.expand(x.shape[0], -1))
    x = x if reading is None else reading.order.spread(encoding.embed_text(reading.order.close(x), reading.text))
    return {name: value for name, value in arguments.items() if name != "input_ids"} | {"inputs_embeds": x}


class _Reading:
    """The text that a backbone is called to go on with. Padding is read past: its tokens come after the others of a row.

    Raises:
        ValueError: without ids of tokens, or with a cache that has not kept what was noted.
    """

    def __init__(self, backbone: Any, arguments: dict[str, Any], encoding: PositionalEncoding, pos: Tensor, layer: int):
        ids, cache = arguments.get("input_ids"), cache_in(arguments)
        if ids is None or ids.ndim != 2:
            raise ValueError(f"{encoding.name!r} looks at the tokens themselves: call the model with 2-D input_ids, [batch, tokens]")
        real = real_tokens(arguments.get("attention_mask"), cache, pos)
        self.order = Order(None if real is None else real[:, 1:])
        where = pos.expand(len(ids), -1)
        place = where if self.order.real is None else torch.where(self.order.real, where, NOWHERE)
        ids, where, place = (self.order.close(x) for x in (ids, where, place))
        before = torch.full((len(ids), 1 + encoding.noted), NOWHERE, device=pos.device)
        if encoding.noted:
            if not isinstance(arguments.get("cache"), Cache | None):  # a paged one
                no_continuous_batching()
            before = _before(cache, layer, encoding, before)
        first = place - torch.cat((before[:, :1], place[:, :-1]), 1) != 1
        self.text = Text(ids, where, first, before[:, 1:], backbone.get_input_embeddings())
        if encoding.noted:
            noted = torch.cat((place[..., None], encoding.notes(self.text)), -1)
            setattr(pos, NOTES, self.order.spread(noted, before[:, None])[:, None])


def real_tokens(mask: Any, cache: Cache | None, pos: Tensor) -> Tensor | None:
    """Which of the new tokens at `pos` [1 or B,Q], and of the one before them, are no padding, where the mask of the call says so:
    [1 or B,1+Q] bool."""
    if isinstance(mask, dict):  # one for each type of layer
        mask = max((x for x in mask.values() if isinstance(x, Tensor)), key=lambda x: x.shape[-1], default=None)
    new, past = pos.shape[-1], 0 if cache is None else cache.get_seq_length()
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4) or mask.shape[-1] < (past if isinstance(past, int) else 0) + new:
        return None
    index = torch.arange(mask.shape[-1], device=mask.device)
    if mask.ndim == 2:
        seen, index = mask.bool(), index[columns_of(mask, cache, new)]
    else:
        seen, index = visible(mask, slice(None), new, len(index), mask.device)[:, 0].any(-2), past + index[:new]
    index = torch.cat((index[:1], index + 1))
    return F.pad(seen, (1, 0), value=True)[:, index].to(pos.device)


def _before(cache: Any, layer: int, encoding: PositionalEncoding, nothing: Tensor) -> Tensor:
    """What is noted [B,1+n] of the last token in a KV cache, or `nothing` where there is none."""
    cache = getattr(cache, "self_attention_cache", cache)
    held = cache.layers[layer] if cache is not None and layer < len(cache.layers) else None
    if held is None or not held.is_initialized:
        return nothing
    keys = held.keys
    columns = width_of(nothing[:, None, None], 1, keys.dtype)
    if keys.shape[3] < encoding.geometry.head_dim + columns:
        if not int(held.get_seq_length()):
            return nothing  # sized in advance, by a configuration
        raise ValueError(f"{encoding.name!r} goes on from what it has noted of the last token, which this KV cache was not filled with")
    length = length_of(held, keys.device)
    last = (length - 1).clamp(0, keys.shape[2] - 1)
    columns = keys[:, :1, :, -columns:].index_select(2, last[None])
    found = unpacked(columns, 1, torch.float32)[:, 0, 0].round().to(nothing)
    return torch.where(length.to(nothing.device) > 0, found, nothing)


class NotedTokens:
    """Before the attention of one layer: put what is noted of the tokens beside its keys in the KV cache."""

    def __init__(self, settled: Settled):
        self.settled = settled

    def __call__(self, attention: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        kwargs, notes = by_name(attention, args, kwargs), getattr(self.settled.of({}), NOTES)
        for name, cache in [(name, x) for name, x in kwargs.items() if isinstance(x, Cache)]:
            kwargs[name] = NotingCache(getattr(cache, "self_attention_cache", cache), notes)
        return (), kwargs


class NotingCache(SeenCache):
    """One that keeps `notes` [B,1,Q,1+n] beside the keys, and gives back keys without."""

    def __init__(self, cache: Cache, notes: Tensor):
        super().__init__(cache)
        self._notes = notes

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Cache the new keys [B,G,Q,D] and values [B,G,Q,V]; all that is cached, [B,G,K,D] and [B,G,K,V]."""
        width, notes = key_states.shape[-1], self._notes.to(key_states.device, torch.float32)
        key = torch.cat((key_states, packed(notes, key_states.shape[1], key_states.dtype)), -1)
        if layer_idx < len(self._cache.layers) and isinstance(self._cache.layers[layer_idx], RoundingLayer):
            raise ValueError(
                "a quantized KV cache rounds what an encoding has noted of the tokens beside their keys; use another cache, or an encoding "
                "that does not look at the tokens"
            )
        self._make_room(layer_idx, key.shape[-1])
        key, value = self._cache.update(key, value_states, layer_idx, *args, **kwargs)
        return key[..., :width], value
