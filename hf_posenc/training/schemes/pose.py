from __future__ import annotations

import torch
from torch import Tensor

from ...encodings.options import count
from .base import Collator, Document, PositionScheme, scheme


@scheme("pose")
class PoSE(PositionScheme):
    """Positional skip-wise training (Zhu et al., 2023, arXiv:2309.10400, section 3.2).

    A text of L tokens falls into chunks, and chunk i is moved by u_i ~ U{u_(i-1) ... L' - L}, u_0 = 0: training at L shows the model
    distances up to L'. The encoding must reach L' already, for example `patch(model, "yarn", target_length=L')`.

    Differs from the authors' code: chunks are cut at uniformly random places (there the first of two is at most half the row), and their
    text is contiguous (there the second one comes from further on in a longer document).

    Args:
        target_length: L', in tokens.
        chunks: into which each text falls, at least 2; more of them leave fewer distances within a chunk. A shorter text has one a token.
    """

    def __init__(self, target_length: int, chunks: int = 2, seed: int = 0, collator: Collator | None = None):
        super().__init__(seed, collator)
        self.target_length = count("target_length", target_length)
        self.chunks = count("chunks", chunks)
        if chunks < 2:
            raise ValueError(f"PoSE needs at least 2 chunks, got {chunks}: with one there is nothing to skip")

    def draw(self, document: Document, generator: torch.Generator) -> Tensor:
        length = len(document)
        cuts = 1 + torch.randperm(length - 1, generator=generator)[: self.chunks - 1].sort().values
        return torch.arange(length) + skips(cuts, length, self.reach(length) - length, generator)


def skips(cuts: Tensor, length: int, most: int, generator: torch.Generator) -> Tensor:
    """What the tokens of a text [length] are moved by: 0 before the first of `cuts` [n], then u_i ~ U{u_(i-1) ... most} from each on."""
    moved, skip = torch.zeros(length, dtype=torch.long), 0
    for cut in cuts.tolist():
        skip = int(torch.randint(skip, most + 1, (), generator=generator))
        moved[cut:] = skip
    return moved
