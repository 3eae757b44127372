from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..attention.products import Products
from ..encodings import PositionalEncoding
from ..encodings.naming import EMBEDDING
from .base import Architecture, register
from .slots import Group, ZeroTable
from .tables import AddedArchitecture, TableArchitecture


class Decoder(AddedArchitecture):
    """A decoder like Bart's, on its own or beside its encoder: it counts the positions for its table itself, padding too."""

    slot = "embed_positions"
    packs = False
    counts_padding = True

    def layer_types(self, config: PretrainedConfig) -> tuple[str, ...]:
        return ("full_attention",) * config.decoder_layers

    def _sizes(self, config: PretrainedConfig) -> dict[str, Any]:
        heads = config.decoder_attention_heads
        sizes = {"num_heads": heads, "num_kv_heads": heads, "head_dim": config.hidden_size // heads, "num_layers": config.decoder_layers}
        return super()._sizes(config) | sizes


class Marian(Decoder):
    """Its sinusoids are the weight of an embedding, and stay out of checkpoints."""

    def fresh(self, native: Any, config: PretrainedConfig) -> nn.Module:
        with torch.device("cpu"), torch.no_grad():
            table = type(native)(native.num_embeddings, native.embedding_dim)
            table.weight.copy_(table.create_weight())
        return table


class M2M100(Decoder):
    """Counts what is no padding by its token; computes more of the table where a text is longer."""

    counts_padding = False


class WrittenZeros(ZeroTable):
    """A `ZeroTable` for a family that writes into what it has looked up."""

    def forward(self, *args, **kwargs) -> Tensor:
        return super().forward(*args, **kwargs).clone()


class Kosmos(AddedArchitecture):
    slot = "embed_positions"
    packs = False

    def backbone(self, model: PreTrainedModel) -> PreTrainedModel:
        found: Any = super().backbone(model)
        return getattr(found, "model", found)  # beneath the head

    def holding(self, native: Any, contents: dict[Group, PositionalEncoding | None]) -> nn.Module:
        return WrittenZeros(self.width(native), native.weights.dtype)


class Speech2Text(M2M100):
    length = "max_target_positions"


class PegasusX(Decoder):
    """Computes its sinusoids in every forward pass."""

    def width(self, native: Any) -> int:
        return native.embed_dim


class Whisper(Decoder, TableArchitecture):
    length = "max_target_positions"
    packs = True


class Blenderbot(Decoder, TableArchitecture):
    pass


class Bart(Blenderbot):
    offset = 2


class BlenderbotSmall(Blenderbot):
    def check_encoding(self, backbone: PreTrainedModel, encoding: PositionalEncoding) -> None:
        if encoding.has(*EMBEDDING):
            raise ValueError(
                f"{encoding.name!r} is added to the embeddings, but this decoder normalises them before it adds positions; "
                "use an encoding that acts in the attention"
            )


class MVP(Bart):
    """Writes its attention down; its queries are scaled before."""

    seam = Products()

    def check(self, backbone: PreTrainedModel) -> None:
        if backbone.config.use_prompt:
            raise ValueError("MVP with use_prompt=True puts keys without positions before those of the text; set it to False")


class TrOCR(Bart):
    """The same; some models have sinusoids, of tokens that are counted by their ids."""

    seam = Products()

    def variant(self, config: Any) -> Architecture:
        return self if config.use_learned_position_embeddings else SINUSOIDAL_TROCR


class SinusoidalTrOCR(Decoder):
    seam = Products()

    def check_encoding(self, backbone: PreTrainedModel, encoding: PositionalEncoding) -> None:
        if encoding.has(*EMBEDDING):
            raise ValueError(
                f"{encoding.name!r} is added to the embeddings, but this TrOCR wants ids, to count the positions of its sinusoids by; "
                "use an encoding that acts in the attention"
            )


class XGLM(AddedArchitecture):
    slot = "embed_positions"
    seam = Products()
    packs = False
    counts_padding = True


SINUSOIDAL_TROCR = SinusoidalTrOCR()


class BioGPT(TableArchitecture):
    slot = "embed_positions"
    offset = 2
    packs = False
    counts_padding = True


register("bart", "mbart", "plbart")(Bart())
register("bigbird_pegasus", "blenderbot")(Blenderbot())
register("blenderbot-small")(BlenderbotSmall())
register("marian", "pegasus")(Marian())
register("biogpt")(BioGPT())
register("mvp")(MVP())
register("trocr")(TrOCR())
register("xglm")(XGLM())
register("whisper")(Whisper())
register("m2m_100", "nllb-moe", "seamless_m4t", "seamless_m4t_v2")(M2M100())
register("speech_to_text")(Speech2Text())
register("pegasus_x")(PegasusX())
register("kosmos_2_text_model", "kosmos_2_5_text_model")(Kosmos())
