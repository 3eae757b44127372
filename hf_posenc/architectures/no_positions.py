from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .base import Architecture, register
from .mla import MLA


class NoPositions(Architecture):
    """A hybrid whose attention has no positions: its recurrent layers tell the order."""

    slot = ""


class NemotronH(NoPositions):
    attention = "mixer"

    def attentions(self, backbone: PreTrainedModel) -> dict[int, nn.Module]:
        """Other layers have something else in the same place."""
        kinds: Any = backbone.config
        return {i: mixer for i, mixer in super().attentions(backbone).items() if kinds.layers_block_type[i] == "full_attention"}


class Zamba(NoPositions):
    """Layers with attention have one block, or a few, in common; its heads are wider than those of the stream."""

    attention = "shared_transf.self_attn"

    def _sizes(self, config: PretrainedConfig) -> dict[str, Any]:
        return super()._sizes(config) | {"head_dim": config.attention_head_dim}


class Zamba2(Zamba):
    attention, slot = "shared_transformer.self_attn", "rotary_emb"

    def has_slot(self, config: Any) -> bool:
        return config.use_mem_rope

    def uses_slot(self, attention: nn.Module) -> bool:
        return self.has_slot(attention.config)


class KimiLinear(MLA):
    slot = ""

    def attentions(self, backbone: PreTrainedModel) -> dict[int, nn.Module]:
        """Other layers have something else in the same place."""
        kinds: Any = backbone.config
        return {i: mixer for i, mixer in super().attentions(backbone).items() if kinds.layer_types[i] == "full_attention"}


register("jamba")(NoPositions())
register("nemotron_h")(NemotronH())
register("zamba")(Zamba())
register("zamba2")(Zamba2())
register("kimi_linear", "glm5_next")(KimiLinear())
