from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from .base import Architecture, register


class HRMText(Architecture):
    """Two stacks that take turns, several times over: the layers of the low one, then those of the high one."""

    def stack(self, backbone: PreTrainedModel) -> Sequence[nn.Module]:
        return [layer for name in ("L_module", "H_module") for layer in backbone.get_submodule(name).get_submodule(self.layers)]


register("hrm_text")(HRMText())
