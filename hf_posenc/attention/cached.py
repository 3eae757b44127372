"""What the KV cache of a patched model holds: keys as the encoding of their layer wants them, made once, when they are new."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache

from ..compat import RoundingLayer
from ..encodings import PositionalEncoding
from ..encodings.base import trailing
from ..encodings.widths import packed, unpacked, width_of
from .places import here, placed
from .reading import Order
from .unrounded import without_autocast

ENCODED = "posenc_keys_are_encoded"
"""Argument that an attention module passes on to its attention function: the keys come out of a cache, as `cached_key` made them."""
STATE = "posenc_state"
"""Another: what the encoding says of the new tokens, [B,A,Q,n]; in the cache it is in the last columns of their keys, `packed`."""


def cache_in(arguments: Mapping[str, Any]) -> Cache | None:
    """The KV cache among the arguments of a call: its name differs between families and versions of transformers."""
    return next((x for x in arguments.values() if isinstance(x, Cache)), None)


def arguments_of(module: Any) -> tuple[str, ...]:
    """Names of what the `forward` of a module takes, in order."""
    return _names(type(module).forward)


def by_name(module: Any, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `module`, each under the name that its `forward` has for it."""
    return dict(zip(arguments_of(module), args, strict=False)) | dict(kwargs) if args else dict(kwargs)


@functools.cache
def _names(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]


def changes_keys(encoding: PositionalEncoding) -> bool:
    """Whether what the cache holds of a key is anything but the key itself."""
    return encoding.has("cached_key") or (encoding.caches == "transformed" and encoding.has("rotate"))


class SeenCache(Cache):
    """A KV cache as one attention module sees it in one call. What is not named here is the cache's own."""

    def __init__(self, cache: Cache):
        self._cache = cache

    def _make_room(self, layer_idx: int, width: int) -> None:
        """A static cache may have been sized in advance, from the configuration: while it is empty, let it look at the keys again."""
        layer: Any = self._cache.layers[layer_idx] if layer_idx < len(self._cache.layers) else None
        if layer is not None and layer.is_initialized and layer.keys.shape[-1] != width and not layer.get_seq_length():
            layer.is_initialized = False

    def __getattr__(self, name: str) -> Any:
        if name == "_cache":  # an instance that is still being made
            raise AttributeError(name)
        return getattr(self._cache, name)


class EncodedKeys(SeenCache):
    """One that keys go into as `cached_key` makes them, with their states.

    Args:
        cache: the cache of the model.
        encoding: the encoding of the layer.
        pos: positions [1 or B,Q] of the new tokens.
        state: of the new tokens as they are read [B,A,Q,n], if the encoding has such.
        real: which of the token before them and of these are no padding, [1 or B,1+Q] bool; None where all are.
    """

    def __init__(self, cache: Cache, encoding: PositionalEncoding, pos: Tensor, state: Tensor | None = None, real: Tensor | None = None):
        super().__init__(cache)
        self._encoding, self._pos, self._state, self._real = encoding, pos, state, real

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Cache the new keys [B,G,Q,D] and values [B,G,Q,V]; all that is cached, [B,G,K,D+n] and [B,G,K,V]."""
        pos, state = self._pos.to(key_states.device), self._state
        encoding = here(self._encoding, pos)
        places = placed(encoding, self._pos).to(key_states.device)  # a graph does not see what a moved tensor has beside its numbers
        key = key_states.to(value_states.dtype)  # as attention takes it: under autocast it may come in another
        with without_autocast(key.device):
            key = encoding.cached_key(key, places).to(key.dtype)
        if state is not None:
            state = self._in_places(state, pos.to(state.device), layer_idx, encoding.lookback)
            key = torch.cat((key, packed(state.to(key.device), key.shape[1], key.dtype)), -1)
        if key.shape[-1] != key_states.shape[-1]:
            self._make_room(layer_idx, key.shape[-1])
        return self._cache.update(key, value_states, layer_idx, *args, **kwargs)

    def _in_places(self, state: Tensor, pos: Tensor, layer_idx: int, lookback: int) -> Tensor:
        """The states [B,A,Q,(1+lookback)*n] of the new tokens, after those that are cached, and each where its token is."""
        real = None if self._real is None else self._real.to(state.device)
        order, before = Order(None if real is None else real[:, 1:], each=not lookback), None
        if lookback and (last := self._last(state, layer_idx)) is not None:
            own = state.shape[-1] // (1 + lookback)
            before = last if real is None else torch.where(real[:, None, :1, None], last, F.pad(last[..., own:], (0, own)))
            earlier = before[..., :-own].unflatten(-1, (lookback, own)).squeeze(2).flip(2)
            state = trailing(state[..., :own], order.close(pos.expand(len(state), -1)), lookback, earlier)
        return order.spread_states(state, lookback, before)

    def _last(self, state: Tensor, layer_idx: int) -> Tensor | None:
        """The state [B,A,1,n] of the last token that is cached; None where there is none."""
        held: Any = self._cache.layers[layer_idx] if layer_idx < len(self._cache.layers) else None
        if held is None or not held.is_initialized:
            return None
        if isinstance(held, RoundingLayer):
            raise ValueError(
                f"{self._encoding.name!r} goes on from what is known of the last tokens, which a quantized KV cache rounds: use another"
            )
        keys, columns = held.keys, width_of(state, held.keys.shape[1], held.keys.dtype)
        if keys.shape[-1] <= columns:  # sized in advance, for keys alone
            return None
        length = length_of(held, keys.device)
        last = (length - 1).clamp(0, keys.shape[2] - 1)
        found = unpacked(keys[..., -columns:].index_select(2, last[None]), state.shape[1], state.dtype)
        return torch.where(length > 0, found, 0).to(state.device)


def length_of(held: Any, device: torch.device) -> Tensor:
    """How many tokens a layer of a KV cache holds, a tensor [] that is made on `device`: a number would have to be copied there."""
    length = held.get_seq_length()
    return length.to(device).view(()) if isinstance(length, Tensor) else torch.full((), length, device=device)


def no_continuous_batching(*args, **kwargs):
    """In the place of `model.init_continuous_batching`: a paged cache is filled behind the attention function, and never seen by it.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "continuous batching (generate_batch) works only with encodings that leave stock attention alone: a rotation on a model that has "
        "RoPE, an absolute encoding, or none. Use generate(), or another encoding"
    )
