from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, register
from ..options import count
from .limited import Limited

BASE = 10


@register("seqpe")
class SeqPE(Limited):
    """Positions as sequences of digits, read by a small transformer (Li et al., 2025, arXiv:2506.13277; SeqPE added to the input).

    x_t -> x_t + W e(t), where e(t) is what a causal transformer says at a last token of its own, after the decimal digits of t with zeros
    on the left, each a learned vector of the digit and one of its place.

    Args:
        max_positions: T in tokens, which sets the number of digits; default the native context.
        depth: layers of the small transformer.
        width: of it; default M.

    Needs training. Each pass reads all of its positions, so that rows of a batch with positions of their own cost more than those which
    share them. Differs from the authors' code: the two losses beside the model's own, on distances between positions and on long
    positions, are a matter of training and left out with the dropout; its extrapolation rests on them.
    """

    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, max_positions: int | None = None, depth: int = 2, width: int | None = None):
        super().__init__(geometry, max_positions)
        self.digits, depth = len(str(self.rows - 1)), count("depth", depth, at_most=64)
        width = geometry.hidden_size if width is None else count("width", width, at_most=1 << 16)
        self.digit, self.place = nn.Parameter(torch.empty(BASE, width)), nn.Parameter(torch.empty(self.digits, width))
        self.last = nn.Parameter(torch.empty(width))
        gelu, heads = partial(F.gelu, approximate="tanh"), math.gcd(width, geometry.num_heads)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, gelu, batch_first=True, norm_first=True)
        self.reader = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.w = nn.Linear(width, geometry.hidden_size)
        for name, p in self.named_parameters():
            if p.ndim > 1 or name == "last":
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        own = pos if pos.stride(0) else pos[:1]  # rows that share their positions
        power = BASE ** torch.arange(self.digits - 1, -1, -1, device=pos.device)
        tokens = F.embedding(own[..., None] // power % BASE, self.digit) + self.place
        tokens = torch.cat((tokens, self.last.expand(*own.shape, 1, -1)), -2).flatten(0, 1)
        causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=pos.device).triu(1)
        return x + self.w(self.reader(tokens, causal, is_causal=True)[:, -1]).view(*own.shape, -1).to(x.dtype)
