from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..encodings import PositionalEncoding
from .base import Architecture, register
from .slots import Group


class OwnRotary(Architecture):
    """Each attention has a rotary module of its own, all alike; the slot holds them by layer.

    What its contents name by a layer is for that layer alone.
    """

    def native(self, backbone: PreTrainedModel) -> nn.Module:
        return nn.ModuleDict({str(i): attention.get_submodule(self.slot) for i, attention in self.attentions(backbone).items()})

    def put(self, backbone: PreTrainedModel, module: Any) -> None:
        for i, attention in self.attentions(backbone).items():
            setattr(attention, self.slot, module[str(i)])

    def rotary(self, native: Any, group: Group) -> tuple[nn.Module, Group]:
        return next(iter(native.values())), group

    def fresh(self, native: Any, config: PretrainedConfig) -> nn.Module:
        return nn.ModuleDict({name: super(OwnRotary, self).fresh(rotary, config) for name, rotary in native.items()})

    def holding(self, native: Any, contents: dict[Group, PositionalEncoding | None]) -> nn.Module:
        def held(name: str, rotary: nn.Module) -> nn.Module:
            group = name if name in contents else None
            return super(OwnRotary, self).holding(rotary, {None: contents[group]}) if group in contents else rotary

        return nn.ModuleDict({name: held(name, rotary) for name, rotary in native.items()})

    def slot_contents(
        self, backbone: PreTrainedModel, wants: dict[int, PositionalEncoding | None]
    ) -> tuple[dict[Group, PositionalEncoding | None], list[int]]:
        contents, alone = super().slot_contents(backbone, wants)
        return contents | {str(i): wants[i] for i in alone}, []

    def stock_config(
        self, native: Any, config: PretrainedConfig, contents: dict[Group, PositionalEncoding | None]
    ) -> PretrainedConfig | None:
        return super().stock_config(native, config, contents) if list(contents) == [None] else None


class RecurrentGemma(OwnRotary):
    attention = "temporal_block"
    packs = False

    def attentions(self, backbone: PreTrainedModel) -> dict[int, nn.Module]:
        """Other layers have a recurrent block in the same place."""
        return {i: block for i, block in super().attentions(backbone).items() if hasattr(block, self.slot)}

    def elsewhere(self, config: PretrainedConfig, pos: Tensor) -> Tensor:
        """Where a text begins, at position 0, the recurrence begins anew."""
        return torch.where(pos > 0, pos + 5, pos)

    def max_positions(self, config: PretrainedConfig) -> int:
        """The length of the texts it was trained on (arXiv:2404.07839), which its configuration does not say."""
        return 8192


register("moshi")(OwnRotary())
register("recurrent_gemma")(RecurrentGemma())
