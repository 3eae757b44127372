from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..encodings import PositionalEncoding, create
from .base import register
from .tables import BiasArchitecture, OwnBias, check_sees_back


class T5(BiasArchitecture):
    """A learned bias by the bucket of the distance; the first layer hands its bias on to the others."""

    layers, attention = "block", "layer.0.SelfAttention"
    slot = "block.0.layer.0.SelfAttention.relative_attention_bias"
    is_learned = True
    packs = False

    def backbone(self, model: PreTrainedModel) -> PreTrainedModel:
        found = super().backbone(model)
        return getattr(found, "encoder", found)  # of a model that is nothing else

    def check(self, backbone: PreTrainedModel) -> None:
        check_sees_back(backbone)

    def _sizes(self, config: PretrainedConfig) -> dict[str, Any]:
        return super()._sizes(config) | {"head_dim": config.d_kv}

    def max_positions(self, config: PretrainedConfig) -> int:
        return 512  # of the paper (arXiv:1910.10683, section 3.1.2); the configuration says none

    def said_length(self, config: PretrainedConfig, tokens: int) -> dict[str, int]:
        return {}

    def buckets(self, native: Any, layer: int) -> nn.Embedding:
        """The table [N,H] by which `layer` looks up its bias."""
        return native

    def native_encoding(self, backbone: Any, native: nn.Module, layer: int) -> PositionalEncoding | None:
        config, weight = backbone.config, self.buckets(native, layer).weight
        options = {"num_buckets": config.relative_attention_num_buckets, "max_distance": config.relative_attention_max_distance}
        encoding: Any = create("t5", self.geometry(config, native, None), **options)
        encoding.adopt(weight.detach())
        return encoding

    def native_table(self, native: Any) -> Tensor | None:
        return None if native.weight.is_meta else native.weight.detach()


class UMT5(OwnBias, T5):
    """Each layer has buckets of its own."""

    slot = "relative_attention_bias"

    def buckets(self, native: Any, layer: int) -> nn.Embedding:
        return native[layer]

    def native_table(self, native: nn.Module) -> Tensor | None:
        return None

    def width(self, native: Any) -> int:
        return super().width(native[0])


register("longt5", "mt5", "pop2piano", "switch_transformers", "t5")(T5())
register("umt5")(UMT5())
