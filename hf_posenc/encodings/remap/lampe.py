from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Geometry, Region, register
from ..options import count, positive
from .base import ExtendedRoPE, own


@register("lampe")
class LaMPE(ExtendedRoPE):
    """LaMPE, positions of three grains for the length of the text (Zhang et al., 2025, arXiv:2508.02308, and the authors' code).

    A text of N tokens has M positions, m(t) = floor(M t / (N - 1)) for token t. A key fewer than W tokens back looks as far as it is;
    key j before looks m(i) - m(j) + W - m(W) - 1 tokens away; and a key N - e tokens back or more is again at whole steps, which
    continue those distances: e tokens are the first ones of a text up to the last that shares m with number `tail`.

    Args:
        factor: N over the native context L; default 4 where no target is given.
        target_length: N in tokens, instead of `factor`; a position beyond is an error.
        mapped: M in tokens; default 0.757 L / (1 + exp(2.467 - 0.86 N / L)), the authors' curve for Llama-3-8B, their L taken out.
        window: W in tokens; default 512, or L / 4 where that is less.
        tail: in tokens; default 200, or L / 8 where that is less.
        attention_factor: factor on cos and sin; the authors evaluate with 0.1 ln 2 + 1 = 1.0693.

    Works without training. Differs from the authors' code: N is given, where they take the length of each prompt, and generate with
    it; no pair is counted twice, as pairs W and N - e apart are when they read a text; a text of fewer than 2 W tokens is no
    exception. They fit the curve to each model.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        factor: float | None = None,
        target_length: int | None = None,
        mapped: int | None = None,
        window: int | None = None,
        tail: int | None = None,
        attention_factor: float = 1.0,
    ):
        super().__init__(geometry)
        native, self.length = self.native_length, self.target(factor, target_length)
        curve = 0.757374 * native / (1 + math.exp(2.466638 - 0.859595 * self.length / native))
        self.mapped = max(1, int(curve)) if mapped is None else count("mapped", mapped, at_most=native)
        self.window = max(1, min(512, native // 4)) if window is None else count("window", window)
        tail = min(200, native // 8) if tail is None else count("tail", tail, 0)
        last = self.length - 1
        self.early = ((tail * self.mapped // last + 1) * last - 1) // self.mapped
        if self.window + self.early >= self.length:
            raise ValueError(
                f"window = {self.window}, and the first {self.early} tokens by tail = {tail} and mapped = {self.mapped}, leave nothing "
                f"between them in {self.length} tokens. Use a shorter window or tail, a greater mapped, or a longer target."
            )
        self.base.attention_factor *= positive("attention_factor", attention_factor)

    @property
    def context_length(self) -> int:
        return self.length

    def stored(self, pos: Tensor) -> Tensor:
        return pos * self.mapped // (self.length - 1)

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        far, last = self.length - self.early, self.length - 1
        shift = self.window - self.window * self.mapped // last - 1
        back = far - 1 - (far - 1) * self.mapped // last - shift
        return [
            Region(self.turn(own, own), keys=lambda q: (q - self.window + 1, q + 1)),
            Region(self.turn(lambda i: self.stored(i) + shift), keys=lambda q: ((q - far + 1).clamp(min=0), q - self.window + 1)),
            Region(self.turn(lambda i: i - back, own), keys=lambda q: (torch.zeros_like(q), q - far + 1)),
        ]
