from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .base import Architecture, register


class HRMText(Architecture):
    """Two stacks that take turns, several times over: the layers of the low one, then those of the high one."""

    def stack(self, backbone: PreTrainedModel) -> Sequence[nn.Module]:
        return [layer for name in ("L_module", "H_module") for layer in attrgetter(f"{name}.{self.layers}")(backbone)]

    def layer_types(self, config: Any) -> tuple[str, ...]:
        """The configuration counts a layer as often as it runs."""
        return ("full_attention",) * (2 * config.num_layers_per_stack)


register("hrm_text")(HRMText())
