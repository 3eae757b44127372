from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Block, Geometry, PositionalEncoding, precise, register, widest
from ..bias.alibi import native_slopes
from ..options import LONGEST_TABLE, count

INIT_STD = 0.02


@register("grape_path")
class GRAPEPath(PositionalEncoding):
    """Path-integral additive GRAPE (Zhang et al., 2025, arXiv:2512.07805, GRAPE-AP): what lies between key and query has a price.

    score(i, j) = q_i k_j / sqrt(D) + the sum of m_h log sigmoid(p_i R(-t) p_t / (|p_t| sqrt(n))) over j < t <= i, with ALiBi's slopes m (or
    the model's own), n numbers p_t = P_h x_t for each head of each layer, from what the layer's attention is given, and R(t) turning the
    pairs of p by t radians.

    Args:
        width: n, an even number.

    Needs training. R stands on one side alone, as in the authors' code, so prices depend on where in the text a token is, not on distance
    alone. At p = 0 it is ALiBi at 0.69 of its slopes. Differs from the authors' code: queries and keys are as the model has them, without
    the norm they are given there; P starts at N(0, 0.02).
    """

    slopes: Tensor
    per_layer = True
    caches = "raw"
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, width: int = 8):
        super().__init__(geometry)
        if count("width", width, 2, LONGEST_TABLE) % 2:
            raise ValueError(f"width must be an even number, of pairs that turn, got {width!r}")
        self.p = nn.Parameter(torch.randn(geometry.num_heads, width, geometry.hidden_size) * INIT_STD)

    def reset_buffers(self) -> None:
        self.set_buffer("slopes", native_slopes(self.geometry))

    def state(self, x: Tensor, pos: Tensor) -> Tensor:
        return precise(x, x)[:, None] @ precise(self.p, x).mT

    def mix(self, scores: Tensor, block: Block) -> Tensor:
        own, others = (cast(Tensor, state).to(scores) for state in (block.q_state, block.k_state))
        a, b = F.rms_norm(others, others.shape[-1:]).chunk(2, -1)
        angle = block.k_pos[:, None, :, None].to(widest(scores.device))  # float32 has no radians beyond 2**24
        cos, sin = angle.cos().to(scores), angle.sin().to(scores)
        turned = torch.cat((a * cos + b * sin, b * cos - a * sin), -1)
        price = F.logsigmoid(own @ turned.mT / own.shape[-1]) * self.slopes.to(scores)[:, None, None]
        price = price.masked_fill(~cast(Tensor, block.seen), 0)
        return scores + price.flip(-1).cumsum(-1).flip(-1) - price  # over the keys after each
