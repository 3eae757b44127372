from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Architecture, register
from .mla import MLA
from .slots import Group


class Ministral3(Architecture):
    """Queries grow with their position beyond the original context: 1 + beta log(1 + floor(t / original))."""

    def query_scale(self, config: Any, layer: int, pos: Tensor) -> Tensor | None:
        rope = config.rope_parameters
        return 1 + rope["llama_4_scaling_beta"] * torch.log(1 + torch.floor(pos / rope["original_max_position_embeddings"]))

    def merge(self, config: Any, group: Group, entries: dict[str, Any]) -> None:
        """The original context of the queries stays, though other schemes have an entry of that name."""
        original = config.rope_parameters["original_max_position_embeddings"]
        super().merge(config, group, entries)
        config.rope_parameters = config.rope_parameters | {"original_max_position_embeddings": original}

    def elsewhere(self, config: Any, pos: Tensor) -> Tensor:
        """Where queries have grown."""
        return pos + config.rope_parameters["original_max_position_embeddings"]


class Mistral4(Ministral3, MLA):
    """The same beside latent attention."""


register("ministral3")(Ministral3())
register("mistral4")(Mistral4())
