from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, PositionalEncoding, Text, register
from ..options import LONGEST_TABLE, count, token_ids
from .runs import since


@register("abacus")
class Abacus(PositionalEncoding):
    """Abacus embeddings: the place of a digit in its number (McLeish et al., 2024, arXiv:2405.17399, section 3).

    x_t -> x_t + P[n], with n = 1, 2 ... for the first, second ... digit of a number, and P[0] for all other tokens. While the model trains,
    each batch has its n moved by a random offset, so that the vectors of longer numbers are trained too. P is 0 at first.

    Args:
        digits: ids of the tokens that are digits: tokenizer.convert_tokens_to_ids(list("0123456789")).
        rows: of P; digits beyond the last share it.
        max_offset: largest offset in training.

    Needs training, on numbers with their lowest digit first; nothing else tells the model the order of tokens (right after the patch it
    has none: `nope`). Differs from the authors' code: P starts at 0; a digit beyond the last row is an error there; they have FIRE, or
    nothing, beside it.
    """

    digit_ids: Tensor
    relative = True
    noted = 1
    needs_training = "pretraining or fine-tuning"
    starts_as = "nope"

    def __init__(self, geometry: Geometry, *, digits: Sequence[int] = (), rows: int = 1024, max_offset: int = 99):
        super().__init__(geometry)
        self.digits, self.max_offset = token_ids("digits", digits), count("max_offset", max_offset, at_least=0)
        self.table = nn.Parameter(torch.zeros(count("rows", rows, at_least=2, at_most=LONGEST_TABLE), geometry.hidden_size))

    def reset_buffers(self) -> None:
        self.set_buffer("digit_ids", torch.tensor(self.digits, dtype=torch.long))

    def notes(self, text: Text) -> Tensor:
        """Of a digit n without the offset, of other tokens 0."""
        if not self.digits:
            raise ValueError(
                'abacus has to know the digits: patch(model, "abacus", digits=tokenizer.convert_tokens_to_ids(list("0123456789")))'
            )
        is_digit = (text.ids[..., None] == self.digit_ids).any(-1)
        follows = torch.cat((text.before > 0, is_digit[:, :-1]), 1)
        return ((since(text.first | ~follows, text.before[:, 0] - 1) + 1) * is_digit)[..., None]

    def embed_text(self, x: Tensor, text: Text) -> Tensor:
        place = self.notes(text)[..., 0]
        if self.training:
            place = place + torch.randint(self.max_offset + 1, (), device=place.device) * (place > 0)
        return x + F.embedding(place.clamp(max=len(self.table) - 1), self.table).to(x)
