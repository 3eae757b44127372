from transformers import PreTrainedModel

from ..encodings import PositionalEncoding
from .base import TableArchitecture, register


class Bart(TableArchitecture):
    """The decoder of an encoder-decoder, whose table is looked up by a count of its own, whatever the position ids say."""

    slot = "embed_positions"
    offset = 2
    packs = False
    counts_padding = True

    def can_hold(self, encoding: PositionalEncoding) -> bool:
        return False


class Marian(Bart):
    """Scales the embeddings where it adds the table, and has computed the table."""

    offset = 0

    def check_encoding(self, backbone: PreTrainedModel, encoding: PositionalEncoding) -> None:
        scale = getattr(backbone, "embed_scale", 1.0)
        if encoding.has("embed") and scale != 1.0:
            raise ValueError(
                f"{encoding.name!r} is added to the embeddings, but this decoder multiplies them by {scale:g} afterwards; "
                "use an encoding that acts in the attention"
            )


class Blenderbot(Bart):
    offset = 0


class BlenderbotSmall(Bart):
    offset = 0

    def check_encoding(self, backbone: PreTrainedModel, encoding: PositionalEncoding) -> None:
        if encoding.has("embed"):
            raise ValueError(
                f"{encoding.name!r} is added to the embeddings, but this decoder normalises them before it adds positions; "
                "use an encoding that acts in the attention"
            )


register("bart", "mbart", "plbart")(Bart())
register("pegasus", "marian")(Marian())
register("blenderbot")(Blenderbot())
register("blenderbot-small")(BlenderbotSmall())
