from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..attention.products import Divided, Products
from .base import Architecture, register
from .tables import TableArchitecture


class Seen:
    """Stands for a buffer [1,1,L,L] of an attention module which says what keys a query sees, at any length.

    Args:
        buffer: the one of the module.
        window: keys that a query sees at most.
    """

    _is_hf_initialized = True  # else `_init_weights` of the model would write its own buffer here

    def __init__(self, attention: nn.Module, buffer: Tensor, window: int | None):
        self.attention, self.window = attention, window
        self.length, self.dtype = buffer.shape[-1], buffer.dtype

    def __getitem__(self, at: tuple[slice, ...]) -> Tensor:
        owner, weight = next((m, p) for m in self.attention.modules() for p in m.parameters(recurse=False))
        device = getattr(getattr(owner, "_hf_hook", None), "execution_device", None) or weight.device
        queries, keys = (torch.arange(x.start or 0, x.stop, device=device) for x in at[2:])
        distance = queries[:, None] - keys
        seen = (distance >= 0) & (distance < self.window) if self.window else distance >= 0
        return seen[None, None].to(torch.bool if self.dtype == torch.bool else weight.dtype)

    def buffer(self) -> Tensor:
        whole = slice(0, self.length)
        return self[:, :, whole, whole]


class CausalBuffer(TableArchitecture):
    """Each attention has a causal mask of the native length, which it outgrows where the table is another one, or none."""

    counts_padding = True

    def window(self, attention: nn.Module) -> int | None:
        """Keys that a query sees at most."""
        return None

    def put(self, backbone: PreTrainedModel, module: nn.Module) -> None:
        super().put(backbone, module)
        attention: Any
        for attention in self.attentions(backbone).values():
            held = attention.bias
            length = held.shape[-1] if isinstance(held, Tensor) else held.length
            outgrown = getattr(module, "num_embeddings", length + 1) > length
            if outgrown and isinstance(held, Tensor):
                del attention._buffers["bias"]
                attention.bias = Seen(attention, held, self.window(attention))
            elif not outgrown and isinstance(held, Seen):
                del attention.bias
                attention.register_buffer("bias", held.buffer(), persistent=False)


class GPTNeo(CausalBuffer):
    """Its products have no factor at all; every other layer has a window."""

    layers, attention, slot = "h", "attn.attention", "wpe"
    seam = Products()

    def layer_types(self, config: PretrainedConfig) -> tuple[str, ...]:
        return tuple("sliding_attention" if kind == "local" else "full_attention" for kind in config.attention_layers)

    def window(self, attention: Any) -> int | None:
        return attention.config.window_size if attention.attention_type == "local" else None


class OpenAIGPT(CausalBuffer):
    """Has no KV cache. Buffers of its backbone have the length that the configuration says, which therefore stays."""

    layers, attention, slot = "h", "attn", "positions_embed"
    seam = Divided()
    packs = False

    def said_length(self, config: PretrainedConfig, tokens: int) -> dict[str, int]:
        return {}


class GPTNeoXJapanese(Architecture):
    attention = "attention"
    seam = Products()


register("gpt_neo")(GPTNeo())
register("openai-gpt")(OpenAIGPT())
register("gpt_neox_japanese")(GPTNeoXJapanese())
