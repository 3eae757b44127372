from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..encodings import PositionalEncoding
from ..encodings.naming import EMBEDDING
from .base import register
from .slots import Group, ZeroTable
from .tables import AddedArchitecture


class ZeroRows(ZeroTable):
    """A `ZeroTable` that is looked up by what all codebooks say, [B,codebooks,Q]."""

    def forward(self, *args, **kwargs) -> Tensor:
        return super().forward(args[0][:, 0])


class Musicgen(AddedArchitecture):
    """A token is a sum of codes, each with an embedding of its own."""

    slot = "embed_positions"
    packs = False
    counts_padding = True

    def ids_per_token(self, config: Any) -> int:
        return config.num_codebooks

    def check_encoding(self, backbone: PreTrainedModel, encoding: PositionalEncoding) -> None:
        if encoding.has(*EMBEDDING):
            raise ValueError(
                f"{encoding.name!r} is added to the embeddings, of which this model has several: use one that acts in the attention"
            )

    def holding(self, native: Any, contents: dict[Group, PositionalEncoding | None]) -> nn.Module:
        return ZeroRows(self.width(native), native.weights.dtype)


register("musicgen_decoder")(Musicgen())
