from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .base import Architecture, register


class Beam(Architecture):
    """Layer types without rotary parameters have no rotation, but queries that grow with their position: (1 + (t + 1) / 2048)^0.1."""

    def uses_slot(self, attention: nn.Module) -> bool:
        own: Any = attention
        return bool(self.parameters(own.config, self.group(own.config, own.layer_idx)))

    def query_scale(self, config: Any, layer: int, pos: Tensor) -> Tensor | None:
        return None if self.parameters(config, self.group(config, layer)) else (1 + (pos.float() + 1) / 2048) ** 0.1


register("beam")(Beam())
