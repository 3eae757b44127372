from __future__ import annotations

import math

import torch
from torch import Tensor

from ...encodings.options import number
from .base import Collator, Document, PositionScheme, scheme


@scheme("cape")
class CAPE(PositionScheme):
    """Continuous augmented positions (Likhomanenko et al., 2021, arXiv:2106.03143).

    t -> (t + a + e_t) exp(b), with one shift a ~ U(-shift, shift) and one b ~ U(-ln scale, ln scale) for each text, and e_t ~ U(-jitter,
    jitter) for each token. Positions lie between whole numbers, and below 0: for rotations, `sinusoidal` and biases that are functions of
    the distance, not for tables. The defaults are the authors' for text.

    Differs from the paper: made for sinusoidal encodings, and works with any that is defined there; positions are not centred (`normalize`
    of the authors' code, off there by default for text), because a decoder does not know how long its text will be.

    Args:
        shift: tokens that all are moved by, at most.
        jitter: tokens that each is moved by besides, at most; 0.5 keeps their order.
        scale: factor that positions are stretched or shrunk by, at most.
    """

    whole = False

    def __init__(self, shift: float = 5.0, jitter: float = 0.5, scale: float = 1.03, seed: int = 0, collator: Collator | None = None):
        super().__init__(seed, collator)
        self.shift, self.jitter = number("shift", shift, 0), number("jitter", jitter, 0, 0.5)
        self.scale = number("scale", scale, 1)
        if not self.shift and not self.jitter and self.scale == 1:
            raise ValueError("without shift, jitter and scale, cape leaves positions as they are: raise one of them")

    def draw(self, document: Document, generator: torch.Generator) -> Tensor:
        def uniform(most: float, *shape: int) -> Tensor:
            return most * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)

        place = torch.arange(len(document)) + uniform(self.shift) + uniform(self.jitter, len(document))
        return place * uniform(math.log(self.scale)).exp()

    def reach(self, length: int) -> int:
        return math.ceil((length - 1 + self.shift + self.jitter) * self.scale) + 1

    def probe(self, steps: Tensor) -> Tensor:
        return steps - self.shift - self.jitter
