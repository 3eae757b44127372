from collections.abc import Sequence
from operator import attrgetter

from torch import nn
from transformers import PreTrainedModel

from .base import Architecture, register


class HRMText(Architecture):
    """Two stacks that take turns, several times over: the layers of the low one, then those of the high one."""

    def stack(self, backbone: PreTrainedModel) -> Sequence[nn.Module]:
        return [layer for name in ("L_module", "H_module") for layer in attrgetter(f"{name}.{self.layers}")(backbone)]


register("hrm_text")(HRMText())
