from typing import Any

from transformers import PreTrainedModel

from .base import Architecture, register


class T5Gemma(Architecture):
    """A decoder that never runs without an encoder."""

    def beside(self, backbone: PreTrainedModel) -> dict[str, Any]:
        like: Any = backbone.get_input_embeddings()
        return {"encoder_hidden_states": like.weight.new_ones(1, 1, backbone.config.cross_attention_hidden_size)}


register("t5_gemma_module")(T5Gemma())
