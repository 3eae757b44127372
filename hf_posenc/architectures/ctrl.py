import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..encodings import PositionalEncoding
from .base import register
from .slots import Group, ZeroTable
from .tables import AddedArchitecture


class Waves(nn.Module):
    """A table [L,M] that the family keeps as a buffer of its backbone."""

    def __init__(self, table: Tensor):
        super().__init__()
        self.table = nn.Buffer(table, persistent=False)


class ZeroBuffer(ZeroTable):
    """A `ZeroTable` that is looked up as a tensor is."""

    _is_hf_initialized = True

    def __getitem__(self, index: Any) -> Tensor:
        return self(*index)


class CTRL(AddedArchitecture):
    layers, attention, slot = "h", "multi_head_attention", "pos_encoding"

    def scale(self, backbone: Any) -> float:
        return math.sqrt(backbone.config.hidden_size)

    def width(self, native: Any) -> int:
        return native.table.shape[1]

    def fresh(self, native: nn.Module, config: PretrainedConfig) -> nn.Module:
        from transformers.models.ctrl.modeling_ctrl import positional_encoding

        return Waves(positional_encoding(config.n_positions, config.n_embd, torch.float))

    def holding(self, native: Any, contents: dict[Group, PositionalEncoding | None]) -> nn.Module:
        return ZeroBuffer(self.width(native), native.table.dtype)

    def native(self, backbone: PreTrainedModel) -> nn.Module:
        held: Any = getattr(backbone, self.slot)
        return Waves(held) if isinstance(held, Tensor) else held

    def put(self, backbone: PreTrainedModel, module: nn.Module) -> None:
        delattr(backbone, self.slot)
        if isinstance(module, Waves):
            backbone.register_buffer(self.slot, module.table, persistent=False)
        else:
            backbone.add_module(self.slot, module)


register("ctrl")(CTRL())
