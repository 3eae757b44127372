from __future__ import annotations

import torch
from torch import Tensor

from ...encodings.options import count
from .base import Collator, Document, PositionScheme, scheme


@scheme("randomized")
class RandomizedPositions(PositionScheme):
    """Randomized positional encodings (Ruoss et al., 2023, arXiv:2305.16843, section 3).

    Each text gets a random subset of the positions 0 ... L' - 1, in ascending order.

    Differs from the paper: one draw for each text, not for each batch; and it is for training alone, evaluation sees consecutive positions.

    Args:
        target_length: L', in tokens; the longest input that the model is to see.
    """

    def __init__(self, target_length: int, seed: int = 0, collator: Collator | None = None):
        super().__init__(seed, collator)
        self.target_length = count("target_length", target_length)

    def draw(self, document: Document, generator: torch.Generator) -> Tensor:
        return torch.randperm(self.reach(len(document)), generator=generator)[: len(document)].sort().values
