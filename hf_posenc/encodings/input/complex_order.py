from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, PositionalEncoding, Text, precise, register
from ..options import LARGEST_BASE, one_of, positive
from ..rotary.rope import power_frequencies

SHARING = ("none", "words", "dimensions")
STARTS = ("sinusoidal", "zero")


@register("complex_order")
class ComplexOrder(PositionalEncoding):
    """Complex word embeddings (Wang et al., 2020, arXiv:1912.12333, section 3): each word has frequencies of its own.

    Dimension k of word w at position t is r exp(i (omega t + phi)), with r, omega and phi of w and k. The embedding of the model holds r
    and phi, as the modulus and the argument of x_2k + i x_2k+1; omega is learned, and turns them by omega t.

    Args:
        share: "none", a frequency for each word and dimension; "words", one for each dimension; "dimensions", one for each word. Without a
            model, one stands for all words.
        init: "sinusoidal", theta^(-2k/M) for all words; or "zero", which leaves the embeddings as they are.
        theta: base of the first frequencies.

    Needs training. With "none" there are half as many numbers as in the embeddings. Differs from the authors' code, which has twice as many
    real dimensions: r there is the whole embedding, phi is left out, positions count from 1, and the network after it is complex. Here it
    is the model's own, with real and imaginary parts side by side.
    """

    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, share: str = "none", init: str = "sinusoidal", theta: float = 10_000.0):
        super().__init__(geometry)
        if geometry.hidden_size % 2:
            raise ValueError(f"complex_order pairs dimensions, but hidden_size is odd: {geometry.hidden_size}")
        share, pairs = one_of("share", share, SHARING), geometry.hidden_size // 2
        shape = (1 if share == "words" else geometry.vocab_size or 1, 1 if share == "dimensions" else pairs)
        first = power_frequencies(positive("theta", theta, at_most=LARGEST_BASE), geometry.hidden_size)[: shape[1]]
        if one_of("init", init, STARTS) == "zero":
            self.starts_as, first = "nope", torch.zeros_like(first)
        self.omega = nn.Parameter(first.expand(shape).clone())

    def embed_text(self, x: Tensor, text: Text) -> Tensor:
        own = F.embedding(text.ids, self.omega) if len(self.omega) > 1 else self.omega
        angle = precise(text.pos, x)[..., None] * precise(own, x)
        real, imaginary = precise(x, x).unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = angle.cos(), angle.sin()
        return torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), -1).flatten(-2).to(x.dtype)
