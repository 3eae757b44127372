from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, register
from .rope import RoPE
from .scaling import scheme


@register("psc")
class PSC(RoPE):
    """Phase shift calibration (Zhu et al., 2024, arXiv:2505.12423, section 3; WNQzhu/PSC), before any scheme of frequencies.

    x -> x (1 + tanh(silu(x W_up) W_down) / 2), number by number, for queries and keys before they are turned, with [D,D] matrices of each
    layer and head.

    Args:
        base: name of the encoding that turns them: "yarn", "linear" and so on.
        factor: passed on to the base, if it takes one.
        target_length: passed on to the base, if it takes one.
        options: further options of the base, by name.

    W_up is 0 at first: right after the patch the logits are those of the base. Needs training at the target length, the paper with LoRA
    beside; an encoding whose frequencies depend on the length of the text cannot be the base. Differs from the paper: there the
    calibration is a block-diagonal matrix; the formula here is that of the authors' code.
    """

    per_layer = True
    needs_training = "fine-tuning at the target length"

    def __init__(
        self,
        geometry: Geometry,
        *,
        base: str = "yarn",
        factor: float | None = None,
        target_length: int | None = None,
        options: dict[str, Any] | None = None,
    ):
        super().__init__(geometry)
        self.base = scheme(self.name, base, geometry, factor, target_length, options)
        self.theta, self.dim, self.attention_factor = self.base.theta, self.base.dim, self.base.attention_factor
        self.starts_as = "" if factor or target_length or options else base
        self.q_up, self.q_down = _matrices(geometry.num_heads, geometry.head_dim)
        self.k_up, self.k_down = _matrices(geometry.num_kv_heads, geometry.head_dim)

    @property
    def context_length(self) -> int | None:
        return self.base.context_length

    def inverse_frequencies(self) -> Tensor:
        return self.base.inverse_frequencies()

    def rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        q, k = _calibrated(q, self.q_up, self.q_down), _calibrated(k, self.k_up, self.k_down)
        return super().rotate(q, k, q_pos, k_pos)

    def frequencies(self) -> None:
        return None

    def rope_parameters(self):
        return None


def _matrices(heads: int, width: int) -> tuple[nn.Parameter, nn.Parameter]:
    """W_up and W_down."""
    down = nn.init.kaiming_uniform_(torch.empty(heads, width, width), a=math.sqrt(5))
    return nn.Parameter(torch.zeros(heads, width, width)), nn.Parameter(down)


def _calibrated(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """x [B,H,T,D], under matrices [H,D,D]."""
    if not x.shape[2]:  # in the place of the other side, and with its heads
        return x
    return x * (1 + torch.tanh(F.silu(x @ up.to(x.dtype)) @ down.to(x.dtype)) / 2).to(x.dtype)
