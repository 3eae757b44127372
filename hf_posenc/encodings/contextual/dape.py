from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import ENCODINGS, Block, Geometry, PositionalEncoding, create, register
from ..options import count

WIDTH = 32


class AroundBias(PositionalEncoding):
    """What computes the scores anew from the products A and a bias B of the positions: A + B + f(A, B), with f mixing heads."""

    relative = True
    per_layer = True
    needs_training = "pretraining or fine-tuning"
    b1: nn.Parameter
    """Of the units that f has in between."""

    def __init__(self, geometry: Geometry, base: str, options: dict[str, Any] | None):
        super().__init__(geometry)
        if not isinstance(base, str) or base not in ENCODINGS or not ENCODINGS[base].only("bias"):
            raise ValueError(f"base of {self.name!r} is an encoding that is a bias, such as 'alibi' or 'kerple', got {base!r}")
        if options is not None and not isinstance(options, dict):
            raise ValueError(f"options of {self.name!r} are those of {base!r} by name, got {options!r}")
        self.base = create(base, geometry, **(options or {}))
        if not self.base.only("bias"):
            raise ValueError(f"options of every encoding are for {self.name!r} as a whole, not for its base: got {options!r}")
        self.starts_as, self.relative = "" if options else base, self.base.relative

    @property
    def context_length(self) -> int | None:
        return self.base.context_length

    def reset_buffers(self) -> None:
        self.base.reset_buffers()

    def project(self) -> None:
        self.base.project()

    def mix(self, scores: Tensor, block: Block) -> Tensor:
        wide = torch.float64 if scores.dtype == torch.float64 else block.q_pos.dtype
        bias = self.base.bias_matrix(block.q_pos.to(wide), block.k_pos.to(wide)).to(scores.dtype).expand_as(scores)
        seen = cast(Tensor, block.seen).expand(-1, -1, scores.shape[2], -1)
        rows = max(1, scores.shape[1] * scores.shape[2] // max(len(self.b1), 2 * scores.shape[1]))  # f holds no more than the scores do
        pieces = zip(scores.split(rows, 2), bias.split(rows, 2), seen.split(rows, 2), strict=True)
        return scores + bias + torch.cat([self.changed(torch.cat((a, b), 1), part) for a, b, part in pieces], 2)

    def changed(self, both: Tensor, seen: Tensor) -> Tensor:
        """f [B,H,Q,K] of products and biases [B,2H,Q,K]."""
        raise NotImplementedError


@register("dape")
class DAPE(AroundBias):
    """Data-adaptive position encoding (Zheng et al., 2024, arXiv:2405.14722, eq. 5; chuanyang-Zheng/DAPE).

    score(i, j) = A + B + f(A, B) with A = q_i k_j / sqrt(D) and B the bias of `base`, both of all heads, and f a layer of `width` leaky
    units, which each layer of the model has for itself.

    Args:
        base: name of an encoding that is a bias: "alibi", "kerple", "fire" and so on.
        width: of f.
        options: of the base, by name.

    Needs training. Differs from the authors' code: f starts at zero, in its second layer, so that a model starts as with `base`.
    """

    def __init__(self, geometry: Geometry, *, base: str = "alibi", width: int = WIDTH, options: dict[str, Any] | None = None):
        super().__init__(geometry, base, options)
        width, heads = count("width", width, at_most=1 << 16), geometry.num_heads
        inner = nn.Linear(2 * heads, width)
        self.w1, self.b1 = inner.weight, inner.bias
        self.w2, self.b2 = nn.Parameter(torch.zeros(heads, width)), nn.Parameter(torch.zeros(heads))

    def changed(self, both: Tensor, seen: Tensor) -> Tensor:
        w1, b1, w2, b2 = (x.to(both) for x in (self.w1, self.b1, self.w2, self.b2))
        return F.linear(F.leaky_relu(F.linear(both.movedim(1, -1), w1, b1)), w2, b2).movedim(-1, 1)
