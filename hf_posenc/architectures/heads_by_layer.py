import copy
from typing import Any

from transformers import PretrainedConfig

from .base import Architecture, register


class Laguna(Architecture):
    """Each layer has its own number of query heads."""

    def config_of(self, config: Any, layer: int) -> PretrainedConfig:
        own = copy.copy(config)
        own.num_attention_heads = config.num_attention_heads_per_layer[layer]
        return own


class MiMoV2Flash(Architecture):
    """Layers with a sliding window have twice the key-value heads."""

    def config_of(self, config: Any, layer: int) -> PretrainedConfig:
        own = copy.copy(config)
        own.num_key_value_heads *= 2 if config.layer_types[layer] == "sliding_attention" else 1
        return own


register("laguna")(Laguna())
register("mimo_v2_flash")(MiMoV2Flash())
