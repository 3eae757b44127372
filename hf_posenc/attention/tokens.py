"""The tokens of a text so far, for encodings that look at what they are: their ids lie beside the keys of one layer in the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ..encodings import PositionalEncoding, Text
from ..encodings.widths import packed, unpacked, width_of
from .cached import SeenCache, by_name, cache_in
from .places import AXES
from .settled import Settled

TOKENS = "posenc_tokens"
"""Attribute of settled positions that holds the ids [B,Q] of the tokens there."""
READING = ("embed_text", "locate")
"""Stages that look at tokens."""


def embedded(backbone: Any, arguments: dict[str, Any], encoding: PositionalEncoding, pos: Tensor, layers: Sequence[int]) -> dict[str, Any]:
    """The arguments of a backbone, with the embeddings as `encoding` makes them of the tokens at `pos` [1 or B,Q]; what it says of their
    positions on several axes is left on `pos`.

    Args:
        layers: those of the encoding; the ids of earlier tokens are in the cache of the first.
    """
    ids, x = arguments.get("input_ids"), arguments.get("inputs_embeds")
    text = text_of(backbone, arguments, encoding, pos, layers) if encoding.has(*READING) else None
    if text is not None and encoding.has("locate"):
        setattr(pos, AXES, encoding.locate(text))
    if not encoding.has("embed", "embed_text"):
        return arguments
    x = backbone.get_input_embeddings()(ids) if x is None else x
    if x.ndim > 3:
        raise ValueError("an encoding of the embeddings takes 2-D input_ids, [batch, tokens]: flatten the choices into the batch")
    x = encoding.embed(x, pos.expand(x.shape[0], -1))
    x = x if text is None else encoding.embed_text(x, text)
    return {name: value for name, value in arguments.items() if name != "input_ids"} | {"inputs_embeds": x}


def text_of(backbone: Any, arguments: dict[str, Any], encoding: PositionalEncoding, pos: Tensor, layers: Sequence[int]) -> Text:
    """The text that a backbone is called to go on with.

    Raises:
        ValueError: without ids of tokens, or with a cache that has not kept them.
    """
    ids = arguments.get("input_ids")
    if ids is None or ids.ndim != 2:
        raise ValueError(f"{encoding.name!r} looks at the tokens themselves: call the model with input_ids [batch, tokens]")
    setattr(pos, TOKENS, ids)
    past, pos = _past(cache_in(arguments), layers[0], encoding), pos.expand(len(ids), -1)
    before = 0 if past is None else past.shape[1]
    every = ids if past is None else torch.cat((past.to(ids), ids), -1)
    mask = arguments.get("attention_mask")
    real = torch.ones_like(every, dtype=torch.bool)
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= every.shape[1]:
        real = mask[:, : every.shape[1]].bool().to(ids.device)
    rank = real.long().cumsum(-1)
    earlier = pos[:, :1] - (rank[:, before : before + 1] - rank[:, :before])
    return Text(every, torch.cat((earlier.clamp(min=0), pos), -1), real, ids.shape[1], backbone.get_input_embeddings())


def _past(cache: Any, layer: int, encoding: PositionalEncoding) -> Tensor | None:
    """Ids [B,P] of the tokens in a KV cache; None where there are none."""
    cache = getattr(cache, "self_attention_cache", cache)
    length = 0 if cache is None else int(cache.get_seq_length(layer))
    if not length:
        return None
    keys = cache.layers[layer].keys
    columns = width_of(keys[:, :1, :1, :1], 1, keys.dtype)
    if keys.shape[2] < length or keys.shape[3] < encoding.geometry.head_dim + columns:
        raise ValueError(
            f"{encoding.name!r} looks at all tokens of the text so far, which this KV cache has not kept: use a DynamicCache or a "
            "StaticCache that this patched model has filled, and a first layer without a sliding window"
        )
    return unpacked(keys[:, :1, :length, -columns:], 1, torch.float32)[:, 0, :, 0].round().long()


class CachedTokens:
    """Before the attention of one layer: put the ids of the tokens beside its keys in the KV cache."""

    def __init__(self, settled: Settled):
        self.settled = settled

    def __call__(self, attention: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        kwargs, ids = by_name(attention, args, kwargs), getattr(self.settled.of({}), TOKENS)
        for name, cache in [(name, x) for name, x in kwargs.items() if isinstance(x, Cache)]:
            kwargs[name] = NotedTokens(getattr(cache, "self_attention_cache", cache), ids)
        return (), kwargs


class NotedTokens(SeenCache):
    """One that keeps `ids` [B,Q] beside the keys, and gives back keys without."""

    def __init__(self, cache: Cache, ids: Tensor):
        super().__init__(cache)
        self._ids = ids

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Cache the new keys [B,G,Q,D] and values [B,G,Q,V]; all that is cached, [B,G,K,D] and [B,G,K,V]."""
        width, numbers = key_states.shape[-1], self._ids.to(key_states.device, torch.float32)[:, None, :, None]
        key = torch.cat((key_states, packed(numbers, key_states.shape[1], key_states.dtype)), -1)
        self._make_room(layer_idx, key.shape[-1])
        key, value = self._cache.update(key, value_states, layer_idx, *args, **kwargs)
        return key[..., :width], value
