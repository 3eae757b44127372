from typing import Any

from torch import nn

from .base import Architecture, register


class Beam(Architecture):
    """Layer types without rotary parameters have no rotation, but queries that grow with their position."""

    def uses_slot(self, attention: nn.Module) -> bool:
        config: Any = attention.config
        return bool(self.parameters(config, self.group(config, attention.layer_idx)))


register("beam")(Beam())
