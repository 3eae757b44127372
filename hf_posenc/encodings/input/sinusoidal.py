from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import LARGEST_BASE, one_of, positive

LAYOUTS = ("interleaved", "concatenated")


@register("sinusoidal")
class Sinusoidal(PositionalEncoding):
    """Sinusoidal position encoding (Vaswani et al., 2017, arXiv:1706.03762, section 3.5).

    x_t -> x_t + c PE(t), with PE(t)_2k = sin(t theta^(-2k/M)) and PE(t)_2k+1 = cos(t theta^(-2k/M)).

    Args:
        theta: base of the frequencies.
        layout: "interleaved" sines and cosines as in the paper, or "concatenated" (RoFormer, Marian).
        scale: c. The paper multiplies embeddings by sqrt(M) instead; with embeddings of standard deviation 0.02, c = 1 drowns them.

    Needs training.
    """

    inv_freq: Tensor
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, theta: float = 10_000.0, layout: str = "interleaved", scale: float = 1.0):
        super().__init__(geometry)
        if geometry.hidden_size % 2:
            raise ValueError(f"sinusoidal pairs dimensions, but hidden_size is odd: {geometry.hidden_size}")
        self.theta, self.scale = positive("theta", theta, at_most=LARGEST_BASE), positive("scale", scale)
        self.layout = one_of("layout", layout, LAYOUTS)

    def reset_buffers(self) -> None:
        width = self.geometry.hidden_size
        self.set_buffer("inv_freq", self.theta ** (-torch.arange(0, width, 2).float() / width))

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        inv_freq = precise(self.inv_freq, x)
        angle = pos[..., None].to(inv_freq) * inv_freq
        if self.layout == "interleaved":
            wave = torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)
        else:
            wave = torch.cat((angle.sin(), angle.cos()), -1)
        return x + (self.scale * wave).to(x.dtype)
