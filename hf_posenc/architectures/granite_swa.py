from typing import Any

from torch import nn
from transformers import PretrainedConfig

from ..encodings import PositionalEncoding
from .base import Architecture, register
from .slots import Group


class GraniteSWA(Architecture):
    """Each layer has a theta of its own, or none: one rotary module for each theta, and a group of layers goes by the text of its own."""

    slot = "rotary_embs"

    def uses_slot(self, attention: nn.Module) -> bool:
        config: Any = attention.config
        return bool(config.layer_rope_theta[attention.layer_idx])

    def group(self, config: PretrainedConfig, layer: int) -> Group:
        return _name(config.layer_rope_theta[layer])

    def parameters(self, config: PretrainedConfig, group: Group) -> dict[str, Any]:
        theta = next(theta for theta in config.layer_rope_theta if _name(theta) == group)
        return config.rope_parameters | {"rope_theta": theta} if theta else {}

    def rotary(self, native: Any, group: Group) -> tuple[nn.Module, Group]:
        return next(rotary for rotary in native if _group_of(rotary) == group), None

    def fresh(self, native: Any, config: PretrainedConfig) -> nn.Module:
        groups = [_group_of(rotary) for rotary in native]
        built = []
        for rotary, group in zip(native, groups, strict=True):
            own = type(config).from_dict(config.to_dict())
            own.rope_parameters = self.parameters(config, group)
            built.append(super().fresh(rotary, own))
        return nn.ModuleList(built)

    def holding(self, native: Any, contents: dict[Group, PositionalEncoding | None]) -> nn.Module:
        held = {_group_of(rotary): rotary for rotary in native}
        return nn.ModuleList(
            super(GraniteSWA, self).holding(rotary, {None: contents[group]}) if group in contents else rotary
            for group, rotary in held.items()
        )

    def stock_config(
        self, native: Any, config: PretrainedConfig, contents: dict[Group, PositionalEncoding | None]
    ) -> PretrainedConfig | None:
        """One scheme goes for all thetas."""
        return super().stock_config(native, config, contents) if len(contents) == len(native) else None

    def merge(self, config: PretrainedConfig, group: Group, entries: dict[str, Any]) -> None:
        config.rope_parameters = config.rope_parameters | {name: value for name, value in entries.items() if name != "rope_theta"}


def _name(theta: float) -> Group:
    return str(float(theta))


def _group_of(rotary: Any) -> Group:
    return _name(rotary.config.rope_parameters["rope_theta"])


register("granite_swa", "granitemoe_swa")(GraniteSWA())
