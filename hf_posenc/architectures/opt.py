from transformers import PreTrainedModel

from ..encodings import PositionalEncoding
from ..encodings.naming import EMBEDDING
from .base import register
from .tables import TableArchitecture


class OPT(TableArchitecture):
    slot = "embed_positions"
    offset = 2
    packs = False

    def check_encoding(self, backbone: PreTrainedModel, encoding: PositionalEncoding) -> None:
        config = backbone.config
        if encoding.has(*EMBEDDING) and config.word_embed_proj_dim != config.hidden_size:
            raise ValueError(
                f"{encoding.name!r} is added to the embeddings, but this OPT projects them from {config.word_embed_proj_dim} "
                f"to {config.hidden_size} dimensions first; use an encoding that acts in the attention"
            )


register("opt")(OPT())
