from __future__ import annotations

import math

import torch
from torch import Tensor

from ...encodings.options import count, number
from .base import Collator, Document, PositionScheme, scheme

EDGE = 4
"""Tokens of the short head and tail, times the factor."""


@scheme("cream")
class CREAM(PositionScheme):
    """Continuity, relativity and a Gaussian middle (Wu et al., 2024, arXiv:2406.07138).

    A text of L tokens is a head at 0 ..., a tail that ends at L' - 1, and a middle somewhere between. Head and tail have L / 3 tokens each
    (relativity), or 4 L' / L (continuity: the middle is nearly all), one as often as the other. With s = L' / L, a head of h and a middle
    of m tokens, the middle ends at U{floor(h + (m - 1) x) ... floor(L x) - h - 1}, where 2x is a whole number from 2 to 2s: N(mean, std)
    rounded down, and what lies outside taken for the nearer end. The encoding must reach L' already.

    Differs from the authors' code: texts are contiguous (there they are cut out of longer ones at these positions); s need not be whole;
    head and tail are chosen for each text (there for 3,000 at a time); the mean is 1 + s, the middle of 2 and 2s (there 9, for s = 8).

    Args:
        target_length: L', in tokens.
        mean: of 2x; default 1 + s.
        std: of 2x.
    """

    def __init__(self, target_length: int, mean: float | None = None, std: float = 3.0, seed: int = 0, collator: Collator | None = None):
        super().__init__(seed, collator)
        self.target_length = count("target_length", target_length)
        self.mean, self.std = None if mean is None else number("mean", mean), number("std", std, 0)

    def draw(self, document: Document, generator: torch.Generator) -> Tensor:
        length = len(document)
        factor = self.reach(length) / length
        edge = length // 3
        if torch.rand((), generator=generator) < 0.5:
            edge = min(edge, int(EDGE * factor))
        middle = length - 2 * edge
        double = (1 + factor if self.mean is None else self.mean) + self.std * float(torch.randn((), generator=generator))
        x = math.floor(min(max(double, 2), 2 * factor)) / 2
        first, last = math.floor(edge + (middle - 1) * x), math.floor(length * x) - edge - 1
        end = int(torch.randint(first, last + 1, (), generator=generator))
        tail = self.reach(length) - edge
        return torch.cat((torch.arange(edge), torch.arange(end - middle + 1, end + 1), torch.arange(tail, tail + edge)))
