"""Hooks on one model instance: they carry no closures, so a patched model can be copied and pickled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from transformers import Cache

from ..encodings import PositionalEncoding
from ..encodings.base import at_hand, has_values
from ..encodings.naming import EMBEDDING
from .cached import ENCODED, STATE, EncodedKeys, arguments_of, by_name, cache_in, no_continuous_batching
from .entry import GIVEN, PREFIX
from .places import AXES, REAL, here
from .positions import bound, on_axes, on_every_axis, resolve
from .reading import Order
from .settled import Remember, Settled
from .structured import written
from .tokens import embedded, real_tokens
from .unrounded import without_autocast

ROTARY = "posenc_rotary"
"""Submodule of an attention, or of a part of it, that holds a rotation of its own."""


class Placed(Protocol):
    """An encoding in a backbone: under `attribute`, unless the native slot of the family holds it."""

    encoding: PositionalEncoding
    attribute: str
    native: bool
    layers: tuple[int, ...]


class BackbonePositions:
    """Before a backbone runs: settle the positions, and let input encodings act on the embeddings.

    Args:
        names: of the arguments of the backbone's `forward`.
        placements: the encodings in it.
        settled: where the positions are left for its layers.
        hand_down: gives the backbone the positions, as its family takes them.
        change_backend: called when the user has set another attention implementation; None where no encoding acts in the attention.
        takes_axes: the backbone takes position ids on several axes (M-RoPE).
    """

    def __init__(
        self,
        names: Sequence[str],
        placements: Sequence[Placed],
        settled: Settled,
        hand_down: Callable[[Any, dict[str, Any], torch.Tensor, Sequence[str]], dict[str, Any]],
        change_backend: Callable[[str], None] | None,
        takes_axes: bool = False,
    ):
        self.names, self.placements, self.settled = names, placements, settled
        self.hand_down, self.change_backend, self.takes_axes = hand_down, change_backend, takes_axes

    def __call__(self, backbone: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        kwargs = dict(zip(self.names, args, strict=False)) | kwargs
        if self.change_backend is not None:
            self._keep_attention(backbone, self.change_backend)
            if not isinstance(kwargs.get("cache"), Cache | None):  # a paged one, from a manager older than the patch
                no_continuous_batching()
        self.settled.pos = pos = resolve(kwargs)
        if on_axes(kwargs):
            setattr(pos, AXES, kwargs["position_ids"])
        if not on_axes(kwargs) or not self.takes_axes:  # else the native slot sees what it was given
            kwargs = self.hand_down(backbone, kwargs, pos, self.names)
        if backbone.training and not torch.compiler.is_compiling():
            Remember.put_in(backbone, self.settled)
        if any(placement.encoding.has("state") for placement in self.placements):
            setattr(pos, REAL, real_tokens(kwargs.get("attention_mask"), cache_in(kwargs), pos))
        for placement in self.placements:
            encoding = placement.encoding
            if torch.is_grad_enabled():
                getattr(backbone, placement.attribute, encoding).project()  # in the native slot: nothing
            if not encoding.any_length and has_values(pos) and not torch.compiler.is_compiling():
                _check(encoding, pos, kwargs)
            if encoding.has(*EMBEDDING, "locate") and not placement.native:
                live = here(getattr(backbone, placement.attribute), pos)
                kwargs = embedded(backbone, kwargs, live, pos, placement.layers)
        return (), kwargs

    def _keep_attention(self, backbone: Any, change: Callable[[str], None]) -> None:
        """A user who changes the attention backend of a patched model means the backend, not the loss of the encoding."""
        chosen = backbone.config._attn_implementation or "eager"
        if not chosen.startswith(PREFIX):
            change(chosen)


def _check(encoding: PositionalEncoding, pos: torch.Tensor, arguments: dict[str, Any]) -> None:
    """That the encoding is defined at `pos`. Numbers on a device are looked at only where the host does not know enough without them."""
    last = None if at_hand(pos) else bound(arguments, pos)
    if last is not None:
        with suppress(ValueError):
            return encoding.check_positions(last)
    encoding.check_positions(int(pos.max()))


class TablePositions:
    """Around a table in the native slot: look up the positions [1 or B,Q], where the family counts its own [Q]."""

    def __init__(self, settled: Settled):
        self.settled = settled

    def before(self, table: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, kwargs | {"position_ids": self.settled.of({}).flatten()}

    def after(self, table: Any, args: tuple, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(*self.settled.of({}).shape, -1)


class LayerRotation:
    """Before the attention of one layer: give it its own cos and sin, where its neighbours keep others."""

    def __init__(self, group: str | None, settled: Settled):
        self.group, self.settled = group, settled

    def __call__(self, attention: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        native = kwargs["position_embeddings"]
        if ROTARY in attention._modules:
            extra = (self.group,) if self.group else ()
            like = native if isinstance(native, torch.Tensor) else native[0]
            own = attention.posenc_rotary(like, on_every_axis(self.settled.of({})).to(like.device), *extra)
        else:
            own = self.still(native)
        return args, kwargs | {"position_embeddings": own}

    def still(self, native: Any) -> Any:
        """What turns nothing, in the place of the `native` cos and sin, or of complex numbers of length 1."""
        return torch.ones_like(native) if isinstance(native, torch.Tensor) else (torch.ones_like(native[0]), torch.zeros_like(native[1]))


class PartRotation(LayerRotation):
    """The same before a part of an attention, to which arguments with these `names` may come by their place."""

    def __init__(self, names: Sequence[str], group: str | None, settled: Settled):
        super().__init__(group, settled)
        self.names = names

    def __call__(self, part: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return super().__call__(part, (), dict(zip(self.names, args, strict=False)) | kwargs)


class LayerRotationSinFirst(LayerRotation):
    """The same where the sines come first."""

    def still(self, native: Any) -> Any:
        return torch.zeros_like(native[0]), torch.ones_like(native[1])


class ReadableMask:
    """Before an attention that reads its mask: write it down, and let the attention function know what it was before keys were chosen.

    Args:
        names: of the arguments of its `forward`.
    """

    def __init__(self, names: Sequence[str]):
        self.names = names

    def __call__(self, attention: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        kwargs = dict(zip(self.names, args, strict=False)) | kwargs
        mask = kwargs.get("attention_mask")
        return (), kwargs | {"attention_mask": written(mask), GIVEN: mask}


class CachedKeys:
    """Before the attention of one layer: let what it puts into the KV cache pass through its encoding, which sees what it is given."""

    def __call__(self, attention: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        encoding, pos = attention.posenc_site.encoding, attention.posenc_site.settled.of(kwargs)
        stateful, state, real = encoding.has("state"), None, getattr(pos, REAL, None)
        if stateful or any(isinstance(x, Cache) for x in args):
            args, kwargs = (), by_name(attention, args, kwargs)
        if stateful:
            x = kwargs[arguments_of(attention)[0]]
            pos = pos.to(x.device)
            order = Order(None if real is None else real[:, 1:].to(x.device), each=not encoding.lookback)
            with without_autocast(x.device):
                state = here(encoding, pos).state(order.close(x), order.close(pos.expand(len(x), -1)))
            kwargs = kwargs | {STATE: order.spread_states(state, encoding.lookback)}
        held = {name: x for name, x in kwargs.items() if isinstance(x, Cache)}
        for name, cache in held.items():
            cache = getattr(cache, "self_attention_cache", cache)  # of an `EncoderDecoderCache`
            kwargs = kwargs | {name: EncodedKeys(cache, encoding, pos, state if encoding.caches_state else None, real), ENCODED: True}
        return args, kwargs
