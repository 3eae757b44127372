from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..attention.masks import Mask
from ..attention.products import Products
from .base import register
from .handed import HandedArchitecture, Without


class MPTProducts(Products):
    """The scale is in the configuration, and a mask says what is hidden."""

    def scale(self, attention: Any, width: int) -> float:
        return attention.softmax_scale

    def mask(self, arguments: Mapping[str, Any]) -> Mask:
        hidden = arguments["attention_mask"]
        return vars(hidden).setdefault("posenc_visible", ~hidden)  # one for all layers


class MPT(HandedArchitecture):
    """The bias is that of ALiBi but for a number of the query. It takes no position ids."""

    layers, attention, length = "blocks", "attn", "max_seq_len"
    seam = MPTProducts()
    without = Without("position_bias")


register("mpt")(MPT())
