"""Families with layers that keep a state beside those with attention, or in them: the state runs on from one document to the next."""

from typing import Any

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


register(
    *("bamba", "falcon_h1", "minimax", "lfm3", "olmo_hybrid", "zaya"),
    *("qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"),
)(Hybrid())
register("lfm2_moe")(LFM2MoE())
register("bailing_hybrid")(HybridMLA())
register("granitemoehybrid")(GraniteMoEHybrid())
