from __future__ import annotations

import torch
from torch import Tensor

from ...encodings.options import count
from .base import Collator, Document, PositionScheme, scheme


@scheme("shape")
class SHAPE(PositionScheme):
    """Shifted absolute positions (Kiyono et al., 2021, arXiv:2109.05644).

    t -> t + k, with one k ~ U{0 ... K - 1} for each text: an absolute encoding (`sinusoidal`, `learned`) learns to look at differences.
    An encoding of the distance alone does not see k, and is refused.

    Differs from the authors' code: there the model is evaluated at K, K + 1 ..., one further than training goes; here it is evaluated, and
    used, at 0, 1 ..., which k = 0 has shown it. To have their numbers, call it with `position_ids` from K on.

    Args:
        max_offset: K, in tokens.
    """

    def __init__(self, max_offset: int = 500, seed: int = 0, collator: Collator | None = None):
        super().__init__(seed, collator)
        self.max_offset = count("max_offset", max_offset, at_least=2)

    def draw(self, document: Document, generator: torch.Generator) -> Tensor:
        return torch.arange(len(document)) + torch.randint(self.max_offset, (), generator=generator)

    def reach(self, length: int) -> int:
        return length + self.max_offset - 1

    def probe(self, steps: Tensor) -> Tensor:
        return steps + self.max_offset - 1

    def judge(self, stretched: float, drawn: float, encoding: str) -> None:
        if drawn <= 0.1 * stretched:
            raise ValueError(f"{self.name} moves all tokens of a text together, and {encoding} sees only how far they lie apart")
