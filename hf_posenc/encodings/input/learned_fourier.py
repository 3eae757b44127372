from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import count, positive


@register("learned_fourier")
class LearnedFourier(PositionalEncoding):
    """Learnable Fourier features (Li et al., 2021, arXiv:2106.02795, algorithm 1), of one axis.

    x_t -> x_t + W2 gelu(W1 r(t) + b1) + b2, with r(t) = [cos(t w) | sin(t w)] / sqrt(N) of N/2 learned frequencies w, at first
    from N(0, 1/gamma^2): then r(s) r(t) is near exp(-(s - t)^2 / (2 gamma^2)) / 2.

    Args:
        gamma: distance in tokens within which positions are alike at first.
        features: N, an even number; default M, or one less.
        hidden: units between W1 and W2.

    Needs training. Differs from the paper, which is about images: gamma counts tokens, and its 1.0 would leave no two positions alike.
    Code that is often taken for the authors' draws w with other deviations: 1/gamma^2 (willGuimont), gamma^(-1/2) (ESPnet).
    """

    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, gamma: float = 10.0, features: int | None = None, hidden: int = 32):
        super().__init__(geometry)
        width = geometry.hidden_size
        features = count("features", width - width % 2 if features is None else features, at_least=2, at_most=1 << 16)
        if features % 2:
            raise ValueError(f"features must be even, got {features}: they are cosines and sines")
        pairs = features // 2
        hidden = count("hidden", hidden, at_most=1 << 16)
        self.w = nn.Parameter(torch.randn(pairs) / positive("gamma", gamma))
        self.w1, self.b1 = nn.Linear(2 * pairs, hidden).parameters()
        self.w2, self.b2 = nn.Linear(hidden, width).parameters()

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        w, w1, b1, w2, b2 = (precise(p, x) for p in (self.w, self.w1, self.b1, self.w2, self.b2))
        angle = precise(pos, x)[..., None] * w
        features = torch.cat((angle.cos(), angle.sin()), -1) * (2 * len(w)) ** -0.5
        return x + F.linear(F.gelu(F.linear(features, w1, b1)), w2, b2).to(x.dtype)
