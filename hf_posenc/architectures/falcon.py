from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from ..attention.products import Divided
from ..encodings import Geometry
from ..encodings.bias.alibi import alibi_slopes
from .base import Architecture, register
from .handed import HandedArchitecture, Without
from .slots import Group


class Falcon(Architecture):
    """RoPE, or ALiBi where the configuration says so."""

    layers, attention = "h", "self_attention"
    seam = Divided()

    def variant(self, config: Any) -> Architecture:
        return FALCON_ALIBI if config.alibi else self

    def _sizes(self, config: Any) -> dict[str, Any]:
        shared = config.multi_query and not config.new_decoder_architecture  # the newer one repeats shared keys for all heads
        return super()._sizes(config) | {"num_kv_heads": 1 if shared else config.num_attention_heads}


class WithoutBiasInMask(Without):
    """The mask [B,H,Q,K] holds the bias [B*H,1,K] too, of which each head wants a number."""

    def instead(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        mask: Tensor = kwargs["attention_mask"][:, :1]
        visible = mask > torch.finfo(mask.dtype).min / 2
        zeros = torch.zeros_like(kwargs[self.argument][..., :1])
        return {self.argument: zeros, "attention_mask": mask.masked_fill(visible, 0.0)}


class FalconALiBi(HandedArchitecture, Falcon):
    """The bias is added before the division by sqrt(D), with slopes and products in bfloat16.

    With eager attention, transformers (5.24) adds it once more, with the mask: no encoding is that, and the proof refuses such a model.
    """

    without = WithoutBiasInMask("alibi")

    def geometry(self, config: PretrainedConfig, native: nn.Module, group: Group) -> Geometry:
        geometry = super().geometry(config, native, group)
        slopes = alibi_slopes(geometry.num_heads).bfloat16().float() * geometry.head_dim**-0.5
        return dataclasses.replace(geometry, slopes=tuple(slopes.tolist()))


FALCON_ALIBI = FalconALiBi()

register("falcon")(Falcon())
