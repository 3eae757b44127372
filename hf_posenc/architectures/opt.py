from torch import nn
from transformers import PreTrainedModel

from .base import TableArchitecture, register


class OPT(TableArchitecture):
    slot = "embed_positions"
    offset = 2

    def backbone(self, model: PreTrainedModel) -> nn.Module:
        return getattr(model.base_model, "decoder", model.base_model)


register("opt")(OPT())
