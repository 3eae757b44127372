from typing import Any

from torch import nn
from transformers import PretrainedConfig

from .base import Architecture, register
from .mla import MLA


class NoPositions(Architecture):
    """A hybrid whose attention has no positions: its recurrent layers tell the order."""

    slot = ""
    packs = False


class NemotronH(NoPositions):
    attention = "mixer"

    def layer_types(self, config: Any) -> tuple[str, ...]:
        return tuple(config.layers_block_type)


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
    packs = False


register("jamba")(NoPositions())
register("nemotron_h")(NemotronH())
register("zamba")(Zamba())
register("zamba2")(Zamba2())
register("kimi_linear", "glm5_next_text")(KimiLinear())
