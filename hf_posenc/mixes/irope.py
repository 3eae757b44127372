from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..encodings.options import count
from .base import EveryNth, Part, register


@register("irope")
class IRoPE(EveryNth):
    """iRoPE, the layers of Llama 4 (Meta, 2025, transformers `Llama4TextModel`).

    RoPE within chunks of the text; every fourth layer sees all of it, without positions, and with `llama4_scale`.

    Args:
        attention_chunk: tokens of a chunk; None for none.
        attn_scale: a of the temperature.
        floor_scale: F of the temperature, in tokens.
        interval: n: layers n - 1, 2 n - 1 ... have no positions.
        base: the encoding of the others: a name, or {"name": ...} with its options.

    Needs training.
    """

    def __init__(
        self,
        *,
        attention_chunk: int | None = 8192,
        attn_scale: float = 0.1,
        floor_scale: int = 8192,
        interval: int = 4,
        base: str | Mapping[str, Any] = "rope",
    ):
        super().__init__(interval=interval, base=base)
        self.chunk = {} if attention_chunk is None else {"attention_chunk": count("attention_chunk", attention_chunk)}
        self.temperature = {"name": "llama4_scale", "attn_scale": attn_scale, "floor_scale": floor_scale}

    def between(self) -> Part:
        return {**self.base, **self.chunk}

    def every(self) -> Part:
        return {**super().every(), "temperature": self.temperature}
