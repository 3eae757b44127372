from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from ..encodings import Geometry, PositionalEncoding
from .base import Architecture, register
from .slots import Group, RotarySlot


class PhiMoE(Architecture):
    """The rotary module computes its frequencies at each call; if they are scaled, its factor on cos and sin is in the configuration."""

    def geometry(self, config: PretrainedConfig, native: nn.Module, group: Group) -> Geometry:
        geometry = super().geometry(config, native, group)
        factor = config.rope_parameters.get("short_mscale", geometry.attention_factor)
        return dataclasses.replace(geometry, attention_factor=geometry.attention_factor if geometry.rope_type == "default" else factor)

    def holding(self, native: nn.Module, contents: dict[Group, PositionalEncoding | None]) -> nn.Module:
        return ComputingSlot(native, contents)

    def holding_alone(self, native: nn.Module, group: Group, encoding: PositionalEncoding) -> nn.Module:
        return ComputingSlot(native, {group: encoding})

    def stock_config(
        self, native: nn.Module, config: PretrainedConfig, contents: dict[Group, PositionalEncoding | None]
    ) -> PretrainedConfig | None:
        """Only unscaled: the configuration of other schemes has no place for their factor."""
        stock = super().stock_config(native, config, contents)
        return stock if stock is not None and stock.rope_parameters["rope_type"] == "default" else None


class ComputingSlot(RotarySlot):
    """A rotary slot of which the module computes what is in it."""

    def refresh_slot(self) -> None:
        super().refresh_slot()
        self.rotary.config.rope_parameters = self.rotary.config.rope_parameters | {"rope_type": "default"}
        self.rotary.rope_init_fn = self._held

    def _held(self, config: Any) -> tuple[Tensor, float]:
        return self.rotary.inv_freq, self.rotary.attention_scaling


register("phimoe")(PhiMoE())
