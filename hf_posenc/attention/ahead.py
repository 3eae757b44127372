"""Tokens that see what comes after them, as those of an image do in some models (PaliGemma, Gemma 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig

from ..compat import mask_sizes
from .cached import cache_in
from .layout import SCAN_BYTES, blocks_of
from .masks import visible
from .positions import length_of


class NothingAhead:
    """Before the decoder within a wrapper runs: refuse the mask of a wrapper that shows tokens what comes after them.

    What acts in the attention is defined for keys behind the query. Within a graph no mask can be looked at.

    Raises:
        ValueError: when it is called.

    Args:
        names: of the arguments of the decoder's `forward`. encodings: names of those that act in its attention.
    """

    def __init__(self, names: Sequence[str], encodings: Sequence[str]):
        self.names, self.encodings = names, encodings

    def __call__(self, decoder: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        given = dict(zip(self.names, args, strict=False)) | kwargs
        queries = length_of(given)
        if torch.compiler.is_compiling() or queries == 1:
            return
        if any(sees_ahead(mask, queries, first) for mask, first in _masks(given, queries, decoder.config)):
            raise ValueError(
                f"tokens of this batch, those of an image, see tokens after them, and {', '.join(map(repr, self.encodings))} is defined "
                "for what lies behind; use a rotation in the native slot (yarn, ntk, linear ...), 'nope', or an encoding of the embeddings"
            )


def sees_ahead(mask: Tensor | BlockMask, queries: int, first: Any) -> bool:
    """Whether one of the `queries` sees a key after its own; that of the first has the index `first`."""
    keys = mask.shape[-1]
    device = mask.device if isinstance(mask, Tensor) else mask.kv_indices.device
    index = torch.arange(keys, device=device)
    for rows in blocks_of(slice(0, queries), max(1, SCAN_BYTES // keys)):
        own = first + torch.arange(queries, device=device)[rows, None]
        if bool((visible(mask, rows, queries, keys, device) & (index > own)).any()):
            return True
    return False


def _masks(given: dict[str, Any], queries: int, config: PretrainedConfig) -> Iterator[tuple[Tensor | BlockMask, Any]]:
    """The masks that say all by themselves, each with the index of the key of the first query."""
    mask, cache = given.get("attention_mask"), cache_in(given)
    types = list(getattr(config, "layer_types", None) or [])
    for kind, one in (mask if isinstance(mask, dict) else {None: mask}).items():
        if isinstance(one, BlockMask) or (isinstance(one, Tensor) and one.ndim == 4):
            layer = types.index(kind) if kind in types else 0
            yield one, 0 if cache is None else cache.get_seq_length() - mask_sizes(cache, queries, layer)[1]
