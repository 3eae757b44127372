from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from ..attention.hooks import LayerRotationSinFirst
from ..attention.settled import Settled
from ..encodings import Geometry, PositionalEncoding
from .base import Architecture, register
from .slots import Group, RotarySlot


class GPTJ(Architecture):
    """The rotary module looks sines and cosines up in a table, which has no scheme in the configuration, and a theta of 10000."""

    layers, attention = "h", "attn"
    interleaved = True

    def group(self, config: PretrainedConfig, layer: int) -> Group:
        return None

    def geometry(self, config: Any, native: nn.Module, group: Group) -> Geometry:
        return Geometry(**self._sizes(config), rotary_dim=config.rotary_dim, interleaved=self.interleaved)

    def holding(self, native: nn.Module, contents: dict[Group, PositionalEncoding | None]) -> nn.Module:
        return SinCosSlot(native, contents)

    def holding_alone(self, native: nn.Module, group: Group, encoding: PositionalEncoding) -> nn.Module:
        return SinCosSlot(native, {group: encoding})

    def layer_hook(self, group: Group, settled: Settled) -> Any:
        return LayerRotationSinFirst(group, settled)

    def stock_config(
        self, native: nn.Module, config: PretrainedConfig, contents: dict[Group, PositionalEncoding | None]
    ) -> PretrainedConfig | None:
        return None


class SinCosSlot(RotarySlot):
    """A rotary slot of which the module looks its angles up: at any position, and not in a table."""

    def refresh_slot(self) -> None:
        rotary, (frequencies, factor) = self.rotary, self._put_in(None)
        held = rotary.embed_positions if isinstance(rotary.embed_positions, Tensor) else rotary.inv_freq
        buffer: Any = frequencies.to("cpu" if held.is_meta else held.device, torch.float32, copy=True)
        rotary._buffers.pop("embed_positions", None)
        rotary.register_buffer("inv_freq", buffer, persistent=False)
        rotary.attention_scaling, rotary.embed_positions = factor, Angles(rotary)

    def _put_in(self, group: Group) -> tuple[Tensor, float]:
        encoding = self.contents[group]
        held = encoding.frequencies() if encoding is not None else None
        return held or (torch.zeros(self.rotary.pos_embd_dim // 2), 1.0)


class Angles:
    """Stands for a table of sines and cosines [L,r], of which rows are taken by position."""

    _is_hf_initialized = True  # else `_init_weights` of the model would write its own table here

    def __init__(self, rotary: Any):
        self.rotary = rotary

    def __getitem__(self, pos: Tensor) -> Tensor:
        angle = pos[..., None].float() * self.rotary.inv_freq.to(pos.device)
        return torch.cat((angle.sin(), angle.cos()), -1) * self.rotary.attention_scaling


register("gptj", "codegen")(GPTJ())
