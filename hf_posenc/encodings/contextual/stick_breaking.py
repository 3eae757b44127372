from __future__ import annotations

from typing import cast

from torch import Tensor
from torch.nn import functional as F

from ..base import Block, PositionalEncoding, register


@register("stick_breaking")
class StickBreaking(PositionalEncoding):
    """Stick-breaking attention (Tan et al., 2024, arXiv:2410.17980, eq. 3).

    In the place of softmax, A(i, j) = sigmoid(z_ij) times the product of 1 - sigmoid(z_it) over j < t < i, with z = q k / sqrt(D): from the
    token before the query backwards, each key takes its part of what is left of a stick. A token does not see itself; what is left at the
    end goes to nothing.

    Needs training.
    """

    relative = True
    needs_training = "pretraining or fine-tuning"

    def normalise(self, scores: Tensor, block: Block) -> Tensor:
        seen = cast(Tensor, block.seen) & (block.k_pos[:, None] < block.q_pos[:, :, None])[:, None]
        kept = F.logsigmoid(-scores).masked_fill(~seen, 0)
        left = kept.flip(-1).cumsum(-1).flip(-1) - kept  # over the keys after each
        return (F.logsigmoid(scores) + left).exp().masked_fill(~seen, 0)
