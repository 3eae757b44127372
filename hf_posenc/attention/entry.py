"""The function that patched layers call in place of their attention backend."""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ..encodings import Block, PositionalEncoding, Region
from ..encodings.widths import unpacked, width_of
from . import blocks, columns, dense, distance, flex, regional, stock
from .cached import ENCODED, STATE
from .call import Call
from .choice import BACKENDS, FLASH, choose
from .kernels import in_rows
from .layout import Layout
from .masks import Mask, additive, only, visible
from .parts import check_whole
from .places import here, placed
from .settled import Settled
from .structured import mask_for_eager, mask_for_flex, mask_for_sdpa
from .unrounded import without_autocast

PREFIX = "hf_posenc_"
GIVEN = "posenc_given_mask"
"""Argument that an attention module passes on to its attention function: its mask, before it hid further keys."""
WHOLE = ("meet", "mix", "normalise", "attended")
"""Stages that ask for a `Block`."""
CHOSEN = "indices"
"""Argument with which a family tells a backend the keys [B,Q,n] that each query may see at most (DeepSeek sparse attention)."""


@dataclasses.dataclass
class EncodingSite:
    """Says where a patched attention module finds its encoding: looked up at every call, so that wrappers (PEFT) are seen.

    Args:
        settled: the positions of the forward pass that the backbone is in.
        avoided: paths that have failed on this machine.
    """

    backbone: nn.Module
    attribute: str
    settled: Settled = dataclasses.field(default_factory=Settled)
    avoided: frozenset[str] = frozenset()

    @property
    def encoding(self) -> PositionalEncoding:
        return getattr(self.backbone, self.attribute)


def posenc_attention(
    backend: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Mask, **kwargs
) -> tuple[Tensor, Tensor | None]:
    """Attention with the encoding of `module`, through `backend`.

    Args:
        query: [B,H,Q,D]. key: [B,G,K,D] and value: [B,G,K,V], from the cache where there is one; both free of positions,
            but for what `cached_key` has done to a cached key.
        attention_mask: in the form `backend` takes.
        kwargs: what transformers passes to a backend.

    Returns:
        output [B,Q,H,V], and the weights [B,H,Q,K] where they were computed.
    """
    site: EncodingSite | None = module.__dict__.get("posenc_site")
    if kwargs.get("block_indices") is not None:
        raise ValueError(f"{type(module).__name__} lets each query see some blocks of keys alone, which patched attention cannot do")
    plain = backend == "eager" or kwargs.get("output_attentions")
    if site is None:
        kwargs.pop(GIVEN, None)
        chosen = kwargs.pop(CHOSEN, None)
        attention_mask = attention_mask if chosen is None else only(attention_mask, chosen, key.shape[2])
    if site is None and not plain:
        return stock.attention(backend, module, query, key, value, attention_mask, **kwargs)
    with without_autocast(query.device):
        call = _call(backend, site, module, query, key, value, attention_mask, **kwargs)
        output, weights = dense.attention(call) if plain else _by_path(call)
    return output.contiguous(), weights  # as the backends of transformers: some families take a view of it


def posenc_scores(module: nn.Module, query: Tensor, key: Tensor, mask: Mask, scaling: float, encoded: bool) -> Tensor:
    """What the softmax is to see under the encoding of `module`, before any mask: [B,H,Q,K], in float32 at least.

    Args:
        query: [B,H,Q,D]. key: [B,G,K,D]. mask: only read for where the keys lie.
        encoded: the keys come out of a cache, as `cached_key` made them.
    """
    more = {ENCODED: True} if encoded else {}
    everything = slice(None), slice(0, query.shape[2]), slice(0, key.shape[2])
    with without_autocast(query.device):
        call = _call("eager", module.__dict__["posenc_site"], module, query, key, key, mask, scaling=scaling, **more)
        return dense.scored(call, *everything, call.query, call.key, dense.block_of(call, *everything, None))


def _call(backend: str, site: EncodingSite | None, module, query, key, value, mask, scaling: float | None = None, **kwargs) -> Call:
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    encoded, chosen = kwargs.pop(ENCODED, False), kwargs.pop(CHOSEN, None)
    added = kwargs.pop("position_bias", None)  # the native bias of the family: that of a patched layer is its encoding
    if site is None:
        mask = _as_numbers(module, mask, query, key, added, kwargs.get("is_causal"))
        return Call(module, query, key, value, mask, None, None, scaling, kwargs)  # type: ignore[arg-type]
    check_whole()
    kwargs["position_ids"] = pos = site.settled.of(kwargs)
    encoding = here(site.encoding, pos)
    # Under autocast the neutral rotation of the family has left bfloat16 numbers in float32.
    query, key, value = (in_rows(x.to(value.dtype)) for x in (query, key, value))
    given = kwargs.pop(GIVEN, mask)
    layout = Layout.of(pos, _said(backend, given, query, key), len(query), key.shape[2])
    state, axes = kwargs.pop(STATE, None), placed(encoding, pos)
    if encoded and state is not None and encoding.caches_state:
        key, state = _parted(key, state)
    if not encoded:
        key = encoding.cached_key(key, layout.k_pos if encoding.axes == 1 else axes)
    if encoding.has("value"):
        value = encoding.value(value, layout.k_pos).contiguous()
    mask = mask if chosen is None else only(mask, chosen, key.shape[2])
    told, layout = layout, layout if mask is given else layout.behind(mask)
    call = Call(module, query, key, value, mask, encoding, layout, scaling, kwargs, backend, avoided=site.avoided)
    if encoding.has(*WHOLE):
        call.whole = _whole(call, told, state, axes)
    if encoding.has("meet"):
        assert call.whole is not None
        call.query, call.key = encoding.meet(call.whole)
        call.met = True
    return call


def _parted(key: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [B,G,K,D+c] that come out of a cache without their last columns, and the states of all [B,A,K,n], by those of the new ones."""
    columns = width_of(state, key.shape[1], key.dtype)
    return key[..., :-columns], unpacked(key[..., -columns:], state.shape[1], state.dtype)


def _whole(call: Call, told: Layout, state: Tensor | None, axes: Tensor) -> Block:
    """All of a call, as the stages see it that ask for blocks.

    Args:
        told: the layout under the mask that tells padding, whatever further keys are hidden.
        state: of all keys [B,A,K,n], or of the queries alone. axes: those of the queries, [n,1 or B,Q], or [1 or B,Q] where there is one.
    """
    encoding, layout = call.encoding, call.layout
    if encoding.has("state") and state is None:
        raise RuntimeError(f"{type(call.module).__name__} does not hand on what it is given, which {encoding.name!r} looks at")
    own, real = told.own if state is not None and encoding.caches_state else (layout.q_pos, None)
    q_state, k_state = (None, None) if state is None else encoding.states(state, own, real)
    many = axes.expand(-1, len(call.query), -1) if encoding.axes > 1 else None
    return Block(call.query, call.key, layout.q_pos, layout.k_pos, call.scaling, None, q_state, k_state, many)


def _as_numbers(module: nn.Module, mask: Mask, query: Tensor, key: Tensor, added: Tensor | None, causal: bool | None) -> Mask:
    """`mask` with what a stock family adds to its scores; none, where it sees both ways, as one that hides nothing."""
    both_ways = mask is None and not (getattr(module, "is_causal", True) if causal is None else causal)
    if added is None:
        return query.new_zeros(1, 1, 1, 1) if both_ways else mask
    if both_ways:
        return added
    seen = visible(mask, slice(0, query.shape[2]), query.shape[2], key.shape[2], query.device)
    return added.masked_fill(~seen, torch.finfo(added.dtype).min)


def _said(backend: str, mask: Mask, query: Tensor, key: Tensor) -> Mask:
    """`mask`, or one that says what none means to flash attention: the queries are the last of the keys, not the first.

    Where a family makes a mask [B,Q] of the new tokens alone, the cached ones are none of padding.
    """
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] < key.shape[2]:
        return F.pad(mask, (key.shape[2] - mask.shape[1], 0), value=1)
    silent = backend in FLASH and mask is None and 1 < query.shape[2] < key.shape[2]
    return query.new_ones(1, key.shape[2], dtype=torch.bool) if silent else mask


def _by_path(call: Call) -> tuple[Tensor, Tensor | None]:
    encoding, layout = call.encoding, call.layout
    regions = call.regions
    call.regional = are_bounded(regions)
    path = choose(encoding, call).path
    if path == "flex":
        return flex.attention(call, regions), None
    if path == "regions":
        return regional.attention(call, regions), None
    if path == "blocks":
        return blocks.attention(call, regions), None
    query, key = regions[0].rotate(call.query, call.key, layout.q_pos, layout.k_pos)
    if path == "table":
        return distance.attention(dataclasses.replace(call, query=query, key=key)), None
    if path == "columns":
        return columns.attention(call, query, key), None
    return _stock(dataclasses.replace(call, query=query, key=key))


def _stock(call: Call) -> tuple[Tensor, Tensor | None]:
    """Attention by the kernel of the model; queries and keys may be wider than values, which fused kernels do not take."""
    width = call.value.shape[-1]
    spare = call.query.shape[-1] - width if call.met else 0
    query, key, value = call.query, call.key, call.value
    if spare > 0:
        value = F.pad(value, (0, spare))
    elif spare < 0:
        query, key = F.pad(query, (0, -spare)), F.pad(key, (0, -spare))
    numbers = additive(call.mask, slice(None))
    mask = call.mask if numbers is None else numbers.to(query.dtype)
    output, weights = stock.attention(call.backend, call.module, query, key, value, mask, scaling=call.scaling, **call.kwargs)
    return output[..., :width], weights


def are_bounded(regions: list[Region]) -> bool:
    """Whether these are more than one way of rotating all pairs."""
    return len(regions) > 1 or regions[0].is_bounded


MASKS = {"eager": mask_for_eager, "sdpa": mask_for_sdpa, "flex_attention": mask_for_flex}
for _backend in BACKENDS:
    if _backend in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionInterface.register(PREFIX + _backend, partial(posenc_attention, _backend))
        AttentionMaskInterface.register(PREFIX + _backend, MASKS.get(_backend, ALL_MASK_ATTENTION_FUNCTIONS[_backend]))
