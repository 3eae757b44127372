from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .base import register
from .mla import MLA


class LongCatFlash(MLA):
    """Each layer has two attentions, which count as two layers, as in its KV cache."""

    def stack(self, backbone: PreTrainedModel) -> Sequence[nn.Module]:
        model: Any = backbone
        return [attention for layer in model.layers for attention in layer.self_attn]

    def attentions(self, backbone: PreTrainedModel) -> dict[int, nn.Module]:
        return dict(enumerate(self.stack(backbone)))


register("longcat_flash")(LongCatFlash())
