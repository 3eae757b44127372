from typing import Any

from transformers import PretrainedConfig

from .base import Architecture, register


class JetMoE(Architecture):
    """Each expert of a token has queries for all keys: the attention gets the keys once for each expert."""

    attention = "self_attention"

    def _sizes(self, config: PretrainedConfig) -> dict[str, Any]:
        heads = config.num_key_value_heads * config.num_experts_per_tok
        return super()._sizes(config) | {"num_heads": heads, "num_kv_heads": heads}


register("jetmoe")(JetMoE())
