"""Families with layers that keep a state beside those with attention, or in them: the state runs on from one document to the next."""

from typing import Any

from transformers import PreTrainedModel

from ..encodings import PositionalEncoding
from .base import Architecture, register
from .mla import MLA


class Hybrid(Architecture):
    packs = False


class LFM2MoE(Hybrid):
    slot = "pos_emb"


class HybridMLA(MLA):
    packs = False


class GraniteMoEHybrid(Hybrid):
    """Has RoPE, or no positions at all."""

    def has_slot(self, config: Any) -> bool:
        return config.position_embedding_type == "rope"

    def uses_slot(self, attention: Any) -> bool:
        return self.has_slot(attention.config)


class Zaya(Hybrid):
    """Its queries and keys are made of several tokens each, and padding is nothing before it is projected."""

    def check_encoding(self, backbone: PreTrainedModel, encoding: PositionalEncoding) -> None:
        if encoding.has("infuse"):
            raise ValueError(
                f"{encoding.name!r} puts positions into what keys are projected from, also of padding, which zaya makes the keys of other "
                "tokens of; use an encoding that acts in the attention"
            )


register("zaya")(Zaya())
register(
    *("bamba", "falcon_h1", "minimax", "lfm3", "olmo_hybrid"),
    *("qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"),
)(Hybrid())
register("lfm2_moe")(LFM2MoE())
register("bailing_hybrid")(HybridMLA())
register("granitemoehybrid")(GraniteMoEHybrid())
