from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, register
from ..options import count
from .dape import WIDTH, AroundBias


@register("dape_v2")
class DAPEv2(AroundBias):
    """DAPE V2, attention scores as feature maps (Zheng et al., 2024, arXiv:2410.04798, section 3; chuanyang-Zheng/DAPE).

    score(i, j) = A + B + f(A, B) as in `dape`, where f are two convolutions over the keys next to key j that query i sees, of all heads,
    with `width` leaky channels in between; each layer of the model has its own.

    Args:
        base: name of an encoding that is a bias: "alibi", "kerple", "fire" and so on.
        width: channels in between.
        kernel: keys that a convolution reaches, an odd number.
        options: of the base, by name.

    Needs training. Differs from the authors' code: f starts at zero, in its second layer, so that a model starts as with `base`; and what a
    query does not see is 0 before the second convolution too, where theirs shows the last key what lies behind it, if there is room, so
    that their decoding would differ from their training.
    """

    def __init__(
        self, geometry: Geometry, *, base: str = "alibi", width: int = WIDTH, kernel: int = 3, options: dict[str, Any] | None = None
    ):
        super().__init__(geometry, base, options)
        width, heads, kernel = count("width", width, at_most=1 << 16), geometry.num_heads, count("kernel", kernel, at_most=1 << 10)
        if not kernel % 2:
            raise ValueError(f"kernel must be odd, to reach as far to both sides, got {kernel}")
        inner = nn.Conv2d(2 * heads, width, (1, kernel))
        self.w1, self.b1 = inner.weight, cast(nn.Parameter, inner.bias)
        self.w2, self.b2 = nn.Parameter(torch.zeros(heads, width, 1, kernel)), nn.Parameter(torch.zeros(heads))

    def changed(self, both: Tensor, seen: Tensor) -> Tensor:
        reach, seen = (0, self.w1.shape[-1] // 2), seen.any(1, keepdim=True)
        order = seen.byte().argsort(dim=-1, descending=True, stable=True)  # side by side what a query sees, whatever is hidden between
        both, seen = both.gather(-1, order.expand(len(both), both.shape[1], -1, -1)), seen.gather(-1, order)
        inner = F.conv2d(both.masked_fill(~seen, 0), self.w1.to(both), self.b1.to(both), padding=reach)
        inner = F.leaky_relu(inner).masked_fill(~seen, 0)
        found = F.conv2d(inner, self.w2.to(both), self.b2.to(both), padding=reach)
        return found.gather(-1, order.argsort(-1).expand_as(found))
