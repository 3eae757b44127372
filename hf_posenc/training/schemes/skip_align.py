from __future__ import annotations

import torch
from torch import Tensor

from ...encodings.options import count
from ..packing import IGNORED
from .base import Collator, Document, PositionScheme, scheme
from .pose import skips


@scheme("skip_align")
class SkipAlign(PositionScheme):
    """Skipped positions between the turns of a conversation (Wu et al., 2024, arXiv:2405.03939).

    PoSE whose cuts lie where the labels change from ignored to learned or back, between instruction and response: the meaning of the
    text says what is far apart. For rows whose labels leave the instructions out. The encoding must reach the target already.

    Differs from the paper, or may: its authors have published no code, so this follows their description alone. Sizes of skips are those of
    PoSE, and there are none within a turn.

    Args:
        target_length: positions 0 ... target_length - 1 are reached.
    """

    def __init__(self, target_length: int, seed: int = 0, collator: Collator | None = None):
        super().__init__(seed, collator)
        self.target_length = count("target_length", target_length)

    def draw(self, document: Document, generator: torch.Generator) -> Tensor:
        length = len(document)
        learned = torch.ones(length, dtype=torch.bool) if document.labels is None else document.labels != IGNORED
        if length > 2 and learned[1:].all():
            raise ValueError("skip_align looks for turns in the labels, and they leave nothing out: mask the instructions, or use pose")
        cuts = 2 + learned[1:].diff().nonzero()[:, 0]  # that packing leaves out the first token of a document means nothing
        return torch.arange(length) + skips(cuts, length, self.reach(length) - length, generator)
