from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import LARGEST_BASE, one_of, positive

LAYOUTS = ("interleaved", "concatenated", "tensor2tensor")
UNITS = ("absolute", "embedding")


@register("sinusoidal")
class Sinusoidal(PositionalEncoding):
    """Sinusoidal position encoding (Vaswani et al., 2017, arXiv:1706.03762, section 3.5).

    x_t -> x_t + c PE(t), with PE(t)_2k = sin(t theta^(-2k/M)) and PE(t)_2k+1 = cos(t theta^(-2k/M)).

    Args:
        theta: base of the frequencies.
        layout: three that are taken for each other, and are not the same: "interleaved" sines and cosines as in the paper;
            "concatenated", all sines and then all cosines (RoFormer, Marian); "tensor2tensor", these with theta^(-k / (M/2 - 1)), so
            that the last frequency is 1 / theta (the authors' code, fairseq, XGLM; fairseq and XGLM count positions from 2).
        scale: c. The paper multiplies embeddings by sqrt(M) instead; with embeddings of standard deviation 0.02, c = 1 drowns them.
        unit: what c counts in: "absolute", or "embedding", the root mean square of each x_t over that of PE. Then c is the
            length of the encoding by that of the embedding it is added to, whatever the model or its training makes of embeddings.

    Needs training.
    """

    inv_freq: Tensor
    needs_training = "pretraining or fine-tuning"

    def __init__(
        self,
        geometry: Geometry,
        *,
        theta: float = 10_000.0,
        layout: str = "interleaved",
        scale: float = 1.0,
        unit: str = "absolute",
    ):
        super().__init__(geometry)
        if geometry.hidden_size % 2:
            raise ValueError(f"{self.name} pairs dimensions, but hidden_size is odd: {geometry.hidden_size}")
        self.theta, self.scale = positive("theta", theta, at_most=LARGEST_BASE), positive("scale", scale)
        self.layout, self.unit = one_of("layout", layout, LAYOUTS), one_of("unit", unit, UNITS)

    def reset_buffers(self) -> None:
        pairs = self.geometry.hidden_size // 2
        last = max(pairs - 1, 1) if self.layout == "tensor2tensor" else pairs
        self.set_buffer("inv_freq", self.theta ** (-torch.arange(pairs).float() / last))

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        wave = self.scale * self.wave(pos, x)
        if self.unit == "embedding":  # measured, not learned through: of PE the mean square is 1/2
            wave = wave * (2 * precise(x.detach(), x).square().mean(-1, keepdim=True)).sqrt()
        return x + wave.to(x.dtype)

    def wave(self, pos: Tensor, like: Tensor) -> Tensor:
        """PE [B,Q,M] of positions [B,Q], in the precision that suits `like`."""
        inv_freq = precise(self.inv_freq, like)
        angle = pos[..., None].to(inv_freq) * inv_freq
        if self.layout == "interleaved":
            return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)
        return torch.cat((angle.sin(), angle.cos()), -1)
