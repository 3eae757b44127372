"""The function that patched layers call in place of their attention backend."""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..encodings import PositionalEncoding
from . import dense, distance, flex, regional
from .masks import Mask, key_positions

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
        query: [B,H,Q,D]. key: [B,G,K,D] and value: [B,G,K,V], from the cache where there is one; both free of positions.
        attention_mask: in the form `backend` takes.
        kwargs: what transformers passes to a backend, `position_ids` [1 or B,Q] among them.

    Returns:
        output [B,Q,H,V], and the weights [B,H,Q,K] where they were computed.
    """
    site: EncodingSite | None = module.__dict__.get("posenc_site")
    if backend == "eager" or kwargs.get("output_attentions"):
        return dense.attention(module, query, key, value, attention_mask, site.encoding if site else None, **kwargs)
    if site is None:
        return ALL_ATTENTION_FUNCTIONS[backend](module, query, key, value, attention_mask, **kwargs)
    encoding = site.encoding
    q_pos = kwargs["position_ids"].expand(query.shape[0], -1)
    k_pos = key_positions(q_pos, attention_mask, key.shape[2])
    regions = encoding.regions(q_pos, k_pos)
    if len(regions) > 1 or regions[0].contains is not None:
        return regional.attention(module, query, key, value, attention_mask, encoding, regions, q_pos, k_pos, **kwargs), None
    query, key = regions[0].rotate(query, key, q_pos, k_pos)
    if not encoding.has("bias"):
        return ALL_ATTENTION_FUNCTIONS[backend](module, query, key, value, attention_mask, **kwargs)
    if backend == "flex_attention":
        return flex.attention(module, query, key, value, attention_mask, encoding, q_pos, k_pos, **kwargs), None
    return distance.attention(module, query, key, value, attention_mask, encoding, q_pos, k_pos, **kwargs), None


for _backend in BACKENDS:
    if _backend in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionInterface.register(PREFIX + _backend, partial(posenc_attention, _backend))
        AttentionMaskInterface.register(PREFIX + _backend, ALL_MASK_ATTENTION_FUNCTIONS[_backend])
