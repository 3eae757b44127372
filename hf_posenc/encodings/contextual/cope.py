from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..base import Block, Geometry, PositionalEncoding, precise, register
from ..options import LONGEST_TABLE, count, flag


@register("cope")
class CoPE(PositionalEncoding):
    """Contextual position encoding (Golovneva et al., 2024, arXiv:2405.18719, section 4; facebookresearch/RAM, projects/cope).

    Key j is p = sum of g_t over j <= t <= i away from query i, at most N - 1, with gates g_t = sigmoid(q_i k_t / sqrt(D)); its score grows
    by q_i e[p], with e[p] between the vectors of the whole positions next to p: N vectors a layer, shared by its heads.

    Args:
        positions: N.
        divided: whether q_i e[p] is divided by sqrt(D), as in the authors' code; not so in the paper.

    Needs training.
    """

    relative = True
    per_layer = True
    starts_as = "nope"
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, positions: int = 64, divided: bool = False):
        super().__init__(geometry)
        self.divided = flag("divided", divided)
        self.table = nn.Parameter(torch.zeros(count("positions", positions, at_least=2, at_most=LONGEST_TABLE), geometry.head_dim))

    def mix(self, scores: Tensor, block: Block) -> Tensor:
        gates = scores.sigmoid().masked_fill(~cast(Tensor, block.seen), 0)  # before they are summed: the future has none
        place = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=len(self.table) - 1)
        by_place = precise(block.q, block.q) @ precise(self.table, block.q).T * (block.scaling if self.divided else 1.0)
        low = place.floor().clamp(max=len(self.table) - 2)
        share, low = place - low, low.long()
        return scores + (1 - share) * by_place.gather(-1, low) + share * by_place.gather(-1, low + 1)
