"""The function that patched layers call in place of their attention backend."""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..encodings import PositionalEncoding
from . import blocks, dense, distance, flex, regional
from .cached import ENCODED
from .call import Call
from .layout import Layout
from .masks import Mask

PREFIX = "hf_posenc_"
BIASABLE = ("eager", "sdpa", "flex_attention")
"""Backends through which a bias or a set of regions can be computed."""
BACKENDS = (*BIASABLE, "flash_attention_2", "flash_attention_3", "flash_attention_4")
"""Backends that a patched model may use for what does not change the scores elementwise."""


@dataclasses.dataclass
class EncodingSite:
    """Says where a patched attention module finds its encoding: looked up at every call, so that wrappers (PEFT) are seen."""

    backbone: nn.Module
    attribute: str

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
        kwargs: what transformers passes to a backend, `position_ids` [1 or B,Q] among them.

    Returns:
        output [B,Q,H,V], and the weights [B,H,Q,K] where they were computed.
    """
    site: EncodingSite | None = module.__dict__.get("posenc_site")
    plain = backend == "eager" or kwargs.get("output_attentions")
    if site is None and not plain:
        return ALL_ATTENTION_FUNCTIONS[backend](module, query, key, value, attention_mask, **kwargs)
    call = _call(site, module, query, key, value, attention_mask, **kwargs)
    return dense.attention(call) if plain else _by_path(backend, call)


def _call(site: EncodingSite | None, module, query, key, value, mask, scaling: float | None = None, **kwargs) -> Call:
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    encoded = kwargs.pop(ENCODED, False)
    if site is None:
        return Call(module, query, key, value, mask, None, None, scaling, kwargs)  # type: ignore[arg-type]
    encoding = site.encoding
    # Under autocast the neutral rotation of the family has left bfloat16 numbers in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    layout = Layout.of(kwargs["position_ids"], mask, len(query), key.shape[2])
    if not encoded:
        key = encoding.cached_key(key, layout.k_pos)
    return Call(module, query, key, value, mask, encoding, layout, scaling, kwargs)


def _by_path(backend: str, call: Call) -> tuple[Tensor, Tensor | None]:
    """The cheapest way that is exact."""
    encoding, layout = call.encoding, call.layout
    regions = layout.once((encoding, "regions"), lambda: encoding.regions(layout.q_pos, layout.k_pos))
    biased = encoding.has("bias") or encoding.has("context_bias")
    if len(regions) > 1 or regions[0].keys is not None:
        learned = any(p.requires_grad for p in encoding.parameters())
        if call.tileable and not biased and not learned:
            return regional.attention(call, regions), None
        return blocks.attention(call, regions), None
    if encoding.has("context_bias"):
        return blocks.attention(call, regions), None
    query, key = regions[0].rotate(call.query, call.key, layout.q_pos, layout.k_pos)
    if not biased:
        return ALL_ATTENTION_FUNCTIONS[backend](call.module, query, key, call.value, call.mask, scaling=call.scaling, **call.kwargs)
    if backend == "flex_attention" and not call.tileable:
        return flex.attention(call, query, key), None
    if encoding.relative and call.tileable:
        return distance.attention(dataclasses.replace(call, query=query, key=key)), None
    return blocks.attention(call, regions), None


for _backend in BACKENDS:
    if _backend in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionInterface.register(PREFIX + _backend, partial(posenc_attention, _backend))
        AttentionMaskInterface.register(PREFIX + _backend, ALL_MASK_ATTENTION_FUNCTIONS[_backend])
