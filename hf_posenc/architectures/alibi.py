"""Families that have ALiBi (arXiv:2108.12409) of their own: made by the backbone, and handed to each attention module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..attention.masks import Mask
from ..attention.products import Divided, Products
from ..attention.settled import Settled
from ..encodings import Geometry, PositionalEncoding
from ..encodings.bias.alibi import alibi_slopes
from .base import Architecture, Group, NoEncoding, register


class ALiBi(NoEncoding):
    """Stands for a native encoding that is no module: arguments of the attention modules, which a patched layer does not get."""


class ALiBiArchitecture(Architecture):
    """A layer is served by a hook, which leaves the bias out; the native slot holds nothing.

    Positions are counted from the 2-D mask and the cache: these backbones take no position ids.
    """

    native_name = "alibi"
    packs = False

    def has_slot(self, config: PretrainedConfig) -> bool:
        return False

    def native(self, backbone: PreTrainedModel) -> nn.Module:
        return ALiBi()

    def can_hold(self, encoding: PositionalEncoding) -> bool:
        return False

    def slot_contents(
        self, backbone: PreTrainedModel, wants: dict[int, PositionalEncoding | None]
    ) -> tuple[dict[Group, PositionalEncoding | None], list[int]]:
        return {}, list(wants)

    def layer_hook(self, group: Group, settled: Settled) -> Any:
        return WithoutBias()


class WithoutBias:
    """Before the attention of one layer: no bias."""

    def __call__(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, kwargs | self.without(kwargs)

    def without(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments in which the bias is, without it."""
        return {"alibi": torch.zeros_like(kwargs["alibi"])}


class Bloom(ALiBiArchitecture):
    """The bias is m_h j, which softmax takes for -m_h (i - j), and goes into the same `baddbmm` as the products."""

    layers, attention, length = "h", "self_attention", "seq_length"
    seam = Products()

    def max_positions(self, config: PretrainedConfig) -> int:
        return getattr(config, self.length, 2048)  # older configurations do not say it


class MPTProducts(Products):
    """The scale is an entry of the configuration, and masks say what is hidden."""

    def scale(self, attention: Any, width: int) -> float:
        return attention.softmax_scale

    def mask(self, arguments: Any) -> Mask:
        hidden = arguments.get("attention_mask")
        return None if hidden is None else vars(hidden).setdefault("posenc_visible", ~hidden)


class WithoutPositionBias(WithoutBias):
    def without(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"position_bias": None}


class MPT(ALiBiArchitecture):
    layers, attention, length = "blocks", "attn", "max_seq_len"
    seam = MPTProducts()

    def layer_hook(self, group: Group, settled: Settled) -> Any:
        return WithoutPositionBias()


class WithoutBiasInMask(WithoutBias):
    """The mask [B,H,Q,K] of Falcon holds the bias too."""

    def without(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        mask: Tensor = kwargs["attention_mask"][:, :1]
        least = torch.finfo(mask.dtype).min
        return super().without(kwargs) | {"attention_mask": mask.masked_fill(mask > least / 2, 0.0)}


class Falcon(Architecture):
    """With RoPE, unless the configuration says ALiBi."""

    layers, attention = "h", "self_attention"
    seam = Divided()

    def variant(self, config: PretrainedConfig) -> Architecture:
        return FALCON_ALIBI if config.alibi else self

    def _sizes(self, config: PretrainedConfig) -> dict[str, Any]:
        return super()._sizes(config) | {"num_kv_heads": _falcon_kv_heads(config)}


class FalconALiBi(ALiBiArchitecture):
    """The bias is added before the division by sqrt(D), with slopes and products in bfloat16.

    With eager attention transformers (5.24) adds it twice, in the mask too: the proof refuses such a model.
    """

    layers, attention = "h", "self_attention"
    seam = Divided()

    def geometry(self, config: PretrainedConfig, native: nn.Module, group: Group) -> Geometry:
        sizes = self._sizes(config)
        slopes = alibi_slopes(sizes["num_heads"]).bfloat16().float() * sizes["head_dim"] ** -0.5
        return Geometry(**sizes, slopes=tuple(slopes.tolist()))

    def _sizes(self, config: PretrainedConfig) -> dict[str, Any]:
        return super()._sizes(config) | {"num_kv_heads": _falcon_kv_heads(config)}

    def layer_hook(self, group: Group, settled: Settled) -> Any:
        return WithoutBiasInMask()


def _falcon_kv_heads(config: Any) -> int:
    """Heads of the keys as its attention makes them; the newer kind repeats shared keys for all heads."""
    return 1 if config.multi_query and not config.new_decoder_architecture else config.num_attention_heads


FALCON_ALIBI = FalconALiBi()

register("bloom")(Bloom())
register("mpt")(MPT())
register("falcon")(Falcon())
