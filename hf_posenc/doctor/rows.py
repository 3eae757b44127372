"""How the tokens of a comparison lie: what a query sees by definition, and the mask that a model would hand on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.masking_utils import packed_sequence_mask_function

from ..attention.choice import FLASH
from ..attention.entry import PREFIX
from ..attention.masks import Mask
from ..compat import create_causal_mask, create_sliding_window_causal_mask

LENGTH = 300
"""Tokens of a row: no multiple of the 128 that kernels go by."""
TRAINED = LENGTH // 3
"""Tokens that the model counts as trained for, so that remaps are at work in a row."""


@dataclass(frozen=True)
class Rows:
    """Two rows of tokens.

    Args:
        start: [B,L], where the text begins that each token belongs to; what lies before the first is padding.
        window: keys that a query sees at most.
        packed: several texts to a row.
    """

    name: str
    start: Tensor
    window: int | None = None
    packed: bool = False

    @property
    def index(self) -> Tensor:
        return torch.arange(LENGTH)

    @property
    def pos(self) -> Tensor:
        """[B,L]"""
        return (self.index - self.start).clamp(min=0)

    @property
    def real(self) -> Tensor:
        """[B,L] bool: no padding."""
        return self.index >= self.start

    @property
    def seen(self) -> Tensor:
        """[B,1,L,L] bool: the keys of each query."""
        own, keys = self.index[:, None], self.index
        seen = (keys <= own) & (keys >= self.start[:, :, None])
        return (seen if self.window is None else seen & (keys > own - self.window))[:, None]

    def mask(self, config: PretrainedConfig, query: Tensor, key: Tensor) -> Mask:
        """What transformers makes of it for queries [B,H,Q,D], the last of the keys [B,G,L,D]: those before them are in the cache."""
        config, device = copy.copy(config), query.device
        config.sliding_window = self.window
        cached = key.shape[2] - query.shape[2]
        cache = DynamicCache()
        if cached:
            cache.update(key[:, :, :cached], key[:, :, :cached], 0)
        padding = None if bool(self.real.all()) else self.real.long().to(device)
        apart = packed_sequence_mask_function(self.start.to(device)) if self.packed else None  # flash attention goes by positions
        create = create_causal_mask if self.window is None else create_sliding_window_causal_mask
        return create(config, query[:, 0], padding, cache if cached else None, and_mask_function=apart)


def is_flash(config: PretrainedConfig) -> bool:
    """Whether masks are made for flash attention."""
    return str(config._attn_implementation).removeprefix(PREFIX) in FLASH


def layouts(window: int | None, rows_apart: bool = True) -> Iterator[Rows]:
    """Every way that tokens lie in a model whose sliding layers, if it has such, see `window` keys.

    Args:
        rows_apart: several rows may have several texts each; flash attention takes one such row.
    """
    none = torch.zeros(2, LENGTH, dtype=torch.long)
    yield Rows("plain", none)
    yield Rows("padded", torch.tensor([[77], [0]]).expand(-1, LENGTH))
    index = torch.arange(LENGTH)
    two, three = torch.where(index < 120, 0, 120), torch.where(index < 41, 0, torch.where(index < 190, 41, 190))
    yield Rows("packed", torch.stack((two, three) if rows_apart else (three,)), packed=True)
    if window is not None:
        yield Rows("window", none, window=min(window, LENGTH // 3))
