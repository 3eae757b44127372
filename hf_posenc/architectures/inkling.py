import copy
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from ..encodings import PositionalEncoding
from .base import register
from .slots import Group
from .tables import OwnBias


class NoLogits(nn.Module):
    """In the place of what makes a bias [B,H,Q,K] of states [B,Q,H,d], positions of queries [Q] and positions of keys [K]."""

    def forward(self, states: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        return states.new_zeros(()).expand(len(states), states.shape[2], len(queries), len(keys))


class Inkling(OwnBias):
    """Its bias by distance depends on what the query says. Layers with a sliding window have other heads."""

    slot = "rel_logits_proj"
    is_learned = True
    packs = False  # its convolutions run on from one document to the next

    def layer_types(self, config: Any) -> tuple[str, ...]:
        return tuple("full_attention" if kind == "hybrid" else "sliding_attention" for kind in config.layer_types)

    def config_of(self, config: Any, layer: int) -> PretrainedConfig:
        own = copy.copy(config)
        if self.layer_types(config)[layer] == "sliding_attention":
            own.num_attention_heads, own.num_key_value_heads = config.swa_num_attention_heads, config.swa_num_key_value_heads
            own.head_dim = config.swa_head_dim
        return own

    def holding(self, native: nn.Module, contents: dict[Group, PositionalEncoding | None]) -> nn.Module:
        return NoLogits()


register("inkling_text")(Inkling())
