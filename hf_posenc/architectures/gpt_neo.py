from transformers import PretrainedConfig

from ..attention.products import Divided, Products
from .base import Architecture, TableArchitecture, register


class GPTNeo(TableArchitecture):
    """Its products have no factor at all; every other layer has a window."""

    layers, attention, slot = "h", "attn.attention", "wpe"
    seam = Products()
    counts_padding = True
    packs = False

    def layer_types(self, config: PretrainedConfig) -> tuple[str, ...]:
        return tuple("sliding_attention" if kind == "local" else "full_attention" for kind in config.attention_layers)


class OpenAIGPT(TableArchitecture):
    """Has no KV cache."""

    layers, attention, slot = "h", "attn", "positions_embed"
    seam = Divided()
    counts_padding = True
    packs = False


class GPTNeoXJapanese(Architecture):
    attention = "attention"
    seam = Products()


register("gpt_neo")(GPTNeo())
register("openai-gpt")(OpenAIGPT())
register("gpt_neox_japanese")(GPTNeoXJapanese())
