"""Families that change queries and keys once more after they have turned them."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..attention.cached import changes_keys
from ..encodings import Geometry, PositionalEncoding
from ..encodings.composing.tempered import turns
from .base import Architecture, register
from .slots import Group


class TurnsFirst(Architecture):
    """What follows the rotation has a weight for each dimension: the two cannot change places, so no other rotation can come last."""

    def check_encoding(self, backbone: PreTrainedModel, encoding: PositionalEncoding) -> None:
        if turns(encoding):
            raise ValueError(
                f"{encoding.name!r} turns queries and keys in the attention function, but {backbone.config.model_type} weighs their "
                "dimensions between its rotation and its attention; use an encoding that fits its own rotation (such as 'yarn' or "
                "'linear', in all layers that have it), a bias, or 'nope'"
            )


class NormedLast(TurnsFirst):
    """Queries and keys are normed after the rotation, over the whole head: this undoes a factor on cos and sin, as in transformers."""

    norms: ClassVar[tuple[str, str]] = ("query_layernorm", "key_layernorm")
    """Where an attention keeps those of queries and of keys."""

    def geometry(self, config: PretrainedConfig, native: nn.Module, group: Group) -> Geometry:
        return dataclasses.replace(super().geometry(config, native, group), attention_factor=1.0)

    def turned(self, attention: Any, encoding: PositionalEncoding, query: Tensor, key: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        norms = [getattr(attention, name, None) or nn.Identity() for name in self.norms]
        query, key = (x / getattr(norm, "weight", 1.0) for x, norm in zip((query, key), norms, strict=True))
        query, key = super().turned(attention, encoding, query, key, pos)
        return norms[0](query), norms[1](key)


class NormedPlainly(NormedLast):
    """The norm has no weights: what turns in the attention function is right, and has its factor."""

    norms = ("q_norm", "k_norm")

    def check_encoding(self, backbone: PreTrainedModel, encoding: PositionalEncoding) -> None:
        """Anything goes."""

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


class Dory(TurnsFirst):
    """Queries have a weight for each dimension after the rotation; some layers run several times, and then may read cached keys apart."""

    def check_encoding(self, backbone: PreTrainedModel, encoding: PositionalEncoding) -> None:
        super().check_encoding(backbone, encoding)
        if changes_keys(encoding):
            raise ValueError(f"{encoding.name!r} changes what the KV cache holds, which {backbone.config.model_type} reads past it")

    def turned(self, attention: Any, encoding: PositionalEncoding, query: Tensor, key: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        weight = (attention.sqk * attention.sqk_scale).view(-1, 1, attention.head_dim).square()
        query, key = super().turned(attention, encoding, query / weight, key, pos)
        return query * weight, key


register("hunyuan_v1_dense", "hunyuan_v1_moe")(NormedLast())
register("nanochat")(NanoChat())
register("llama4_text")(Llama4())
register("dory")(Dory())
