from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from .base import register
from .tables import TableArchitecture


class GPT2(TableArchitecture):
    layers, attention, slot = "h", "attn", "wpe"
    counts_padding = True

    def check(self, backbone: PreTrainedModel) -> None:
        if backbone.config.reorder_and_upcast_attn:
            raise ValueError("GPT-2 with reorder_and_upcast_attn=True bypasses the attention interface; set it to False to patch the model")
        if backbone.config.add_cross_attention:
            raise ValueError("GPT-2 with cross-attention is not supported")


class GPTBigCode(TableArchitecture):
    """Its backbone has a buffer of the length that the configuration says, which therefore stays."""

    layers, attention, slot = "h", "attn", "wpe"
    counts_padding = True

    def _sizes(self, config: Any) -> dict[str, Any]:
        sizes = super()._sizes(config)
        return sizes | {"num_kv_heads": 1 if config.multi_query else sizes["num_heads"]}

    def check(self, backbone: PreTrainedModel) -> None:
        if backbone.config.add_cross_attention:
            raise ValueError("GPT-BigCode with cross-attention is not supported")

    def said_length(self, config: PretrainedConfig, tokens: int) -> dict[str, int]:
        return {}


register("gpt2")(GPT2())
register("gpt_bigcode")(GPTBigCode())
