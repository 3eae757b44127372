from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..encodings import Geometry, PositionalEncoding
from .base import Architecture, Group, register


class NormedLast(Architecture):
    """Queries and keys are normed after the rotation, over the whole head: this undoes a factor on cos and sin, as in transformers.

    A norm with weights and a rotation cannot change places, so nothing can be turned in the attention function then.
    """

    norms: ClassVar[tuple[str, str]] = ("query_layernorm", "key_layernorm")
    """Where an attention keeps those of queries and of keys."""

    def geometry(self, config: PretrainedConfig, native: nn.Module, group: Group) -> Geometry:
        return dataclasses.replace(super().geometry(config, native, group), attention_factor=1.0)

    def check_encoding(self, backbone: PreTrainedModel, encoding: PositionalEncoding) -> None:
        weighs = any(_weight(attention, norm) is not None for attention in self.attentions(backbone).values() for norm in self.norms)
        if weighs and (encoding.has("rotate") or encoding.has("regions")):
            raise ValueError(
                f"{encoding.name!r} turns queries and keys in the attention function, but {backbone.config.model_type} norms them between "
                "its rotation and its attention, with weights for each dimension; use an encoding that fits its own rotation (such as "
                "'yarn' or 'linear' in all layers), a bias, or 'nope'"
            )

    def turned(self, attention: Any, encoding: PositionalEncoding, query: Tensor, key: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        weights = [_weight(attention, norm) for norm in self.norms]
        query, key = (x if weight is None else x / weight for x, weight in zip((query, key), weights, strict=True))
        query, key = super().turned(attention, encoding, query, key, pos)
        query, key = (
            getattr(attention, norm)(x) if hasattr(attention, norm) else x for x, norm in zip((query, key), self.norms, strict=True)
        )
        return query, key


def _weight(attention: nn.Module, norm: str) -> Tensor | None:
    return getattr(getattr(attention, norm, None), "weight", None)


class NormedPlainly(NormedLast):
    """The norm has no weights: what turns in the attention function is right, and has its factor."""

    norms = ("q_norm", "k_norm")

    def can_hold(self, encoding: PositionalEncoding) -> bool:
        frequencies = encoding.frequencies()
        return super().can_hold(encoding) and frequencies is not None and frequencies[1] == 1.0


class NanoChat(NormedPlainly):
    backwards = True


class Llama4(NormedPlainly):
    """Chunked layers turn, and are then normed (in some models); full ones do not turn, but have a temperature that grows with the text."""

    norms = ("qk_norm", "qk_norm")
    interleaved = True

    def backbone(self, model: PreTrainedModel) -> PreTrainedModel:
        """The causal model says that it is its own base."""
        base: Any = super().backbone(model)
        return getattr(base, "model", base)


register("hunyuan_v1_dense", "hunyuan_v1_moe")(NormedLast())
register("nanochat")(NanoChat())
register("llama4_text")(Llama4())
