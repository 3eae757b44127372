"""Decoders like BERT: the table lies in the embeddings, beside one of token types."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..attention.products import Divided
from ..encodings import Geometry, PositionalEncoding
from ..encodings.naming import EMBEDDING
from .base import register
from .handed import HandedArchitecture, Without
from .slots import Group, NoEncoding
from .tables import TableArchitecture, check_sees_back


class BERT(TableArchitecture):
    layers, attention, slot = "encoder.layer", "attention.self", "embeddings.position_embeddings"
    packs = False
    counts_padding = True

    def hand_down(self, backbone: Any, arguments: dict[str, Any], pos: Tensor, names: Sequence[str]) -> dict[str, Any]:
        arguments = super().hand_down(backbone, arguments, pos, names)
        if "token_type_ids" in names and arguments.get("token_type_ids") is None:  # else it looks them up by position, up to its context
            arguments["token_type_ids"] = torch.zeros_like(pos)
        return arguments

    def check(self, backbone: PreTrainedModel) -> None:
        check_sees_back(backbone)


class MegatronBERT(BERT):
    """Writes its attention down."""

    seam = Divided()


class BigBird(MegatronBERT):
    def check(self, backbone: PreTrainedModel) -> None:
        super().check(backbone)
        if backbone.config.attention_type != "original_full":
            raise ValueError(
                "BigBird with sparse attention cannot be patched: it multiplies blocks of keys; load it with attention_type='original_full'"
            )


class RoFormer(HandedArchitecture):
    """Has no table: sines and cosines of its own count of tokens are handed to each layer."""

    layers, attention = "encoder.layer", "attention.self"
    seam = Divided()
    native_name = "rope"
    without = Without("sinusoidal_pos")

    def native(self, backbone: PreTrainedModel) -> nn.Module:
        return Sinusoids()

    def geometry(self, config: PretrainedConfig, native: nn.Module, group: Group) -> Geometry:
        return Geometry(**self._sizes(config), interleaved=True)

    def check(self, backbone: PreTrainedModel) -> None:
        check_sees_back(backbone)
        if backbone.config.rotary_value:
            raise ValueError("RoFormer with rotary_value=True turns values too, which no encoding does")


class Sinusoids(NoEncoding):
    """Stands for a rotation that is an argument of the attention modules."""


class RemBERT(MegatronBERT):
    def _sizes(self, config: PretrainedConfig) -> dict[str, Any]:
        sizes = super()._sizes(config)
        return sizes | {"hidden_size": config.input_embedding_size}  # of what positions are added to, before it is projected


class Electra(BERT):
    def _sizes(self, config: PretrainedConfig) -> dict[str, Any]:
        sizes = super()._sizes(config)
        return sizes | {"hidden_size": config.embedding_size}  # of what positions are added to, before it is projected


class RoBERTa(BERT):
    """The table begins with the rows of padding. What a caller gives as position ids are its rows."""

    hands_positions = False
    counts_padding = False

    def hand_down(self, backbone: Any, arguments: dict[str, Any], pos: Tensor, names: Sequence[str]) -> dict[str, Any]:
        given = arguments.get("position_ids") is not None
        rows = pos if given else pos + self.before(backbone.embeddings)
        return super().hand_down(backbone, arguments, rows, names)

    def before(self, native: Any) -> int:
        return native.padding_idx + 1

    def max_positions(self, config: PretrainedConfig) -> int:
        return super().max_positions(config) - config.pad_token_id - 1

    def said_length(self, config: PretrainedConfig, tokens: int) -> dict[str, int]:
        return super().said_length(config, tokens + config.pad_token_id + 1)


class RoCBert(BERT):
    def check_encoding(self, backbone: PreTrainedModel, encoding: PositionalEncoding) -> None:
        if encoding.has(*EMBEDDING) and backbone.config.concat_input:
            raise ValueError(
                f"{encoding.name!r} is added to the embeddings, but this model maps them, with shapes and sounds beside them, before it "
                "adds positions; use an encoding that acts in the attention"
            )


class GIT(MegatronBERT):
    packs = True

    def check(self, backbone: PreTrainedModel) -> None:
        """Its text sees what is before it, whatever the configuration says."""

    def hand_down(self, backbone: Any, arguments: dict[str, Any], pos: Tensor, names: Sequence[str]) -> dict[str, Any]:
        if arguments.get("pixel_values") is not None:
            raise ValueError("GIT puts its image before the text where positions do not reach it: patched, it is a model of text alone")
        return super().hand_down(backbone, arguments, pos, names)


register("bert", "bert-generation", "ernie")(BERT())
register("roc_bert")(RoCBert())
register("megatron-bert")(MegatronBERT())
register("big_bird")(BigBird())
register("rembert")(RemBERT())
register("roformer")(RoFormer())
register("electra")(Electra())
register("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod")(RoBERTa())
register("git")(GIT())
