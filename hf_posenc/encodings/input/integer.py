from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import count, positive


@register("integer")
class Integer(PositionalEncoding):
    """The number of the position, added as it is: the plainest encoding, a textbook's first.

    x_t -> x_t + eps t, in the first `channels` dimensions.

    Args:
        eps: the number that a position adds. At 1 the far positions drown the embeddings, whose numbers are below 1.
        channels: dimensions that get it; M for all. A layer norm takes away what all dimensions have in common, so that all of them
            together tell such a model (GPT-2) nothing.

    Needs training. In half precision the sum is rounded: bfloat16 keeps neighbouring positions apart up to 256, float16 up to 2048.
    """

    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, eps: float = 0.01, channels: int = 1):
        super().__init__(geometry)
        self.eps, self.channels = positive("eps", eps), count("channels", channels, at_most=geometry.hidden_size)

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        return add_to_first(x, self.eps * precise(pos, x)[..., None].expand(*pos.shape, self.channels))


def add_to_first(x: Tensor, numbers: Tensor) -> Tensor:
    """`numbers` [B,Q,n] added to the first n dimensions of x [B,Q,M]."""
    n = numbers.shape[-1]
    return torch.cat(((precise(x[..., :n], x) + numbers).to(x.dtype), x[..., n:]), -1)
