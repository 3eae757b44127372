from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, PositionalEncoding, Text, precise, register
from ..options import count
from .runs import since


@register("conv")
class Convolution(PositionalEncoding):
    """Positions implied by a convolution and its padding (Islam et al., 2020, arXiv:2001.08248; Chu et al., 2021, arXiv:2102.10882, PEG).

    x_t -> x_t + sum of w_i x_{t - i} over i < `taps`, elementwise, with zeros before the first token of a text; w is 0 at first.

    A token knows the order of those before it, and by the zeros that it is near the beginning; more by layers of attention alone.
    Each token notes the ids of those before it beside its key, so that decoding is exact.

    Args:
        taps: tokens that are summed, itself among them.

    Needs training; right after the patch the model has no positions (`nope`). Differs from the authors' code, which is about images: one
    axis and causal; on the embeddings rather than after the first layer; without a bias.
    """

    relative = True
    needs_training = "pretraining or fine-tuning"
    starts_as = "nope"

    def __init__(self, geometry: Geometry, *, taps: int = 4):
        super().__init__(geometry)
        self.noted = count("taps", taps, at_least=2, at_most=64) - 1
        self.w = nn.Parameter(torch.zeros(taps, geometry.hidden_size))

    def notes(self, text: Text) -> Tensor:
        ids, age = self._history(text)
        return torch.stack([torch.where(age >= i, ids[:, i], -1) for i in range(self.noted)], -1)

    def embed_text(self, x: Tensor, text: Text) -> Tensor:
        ids, age = self._history(text)
        taps = enumerate(zip(precise(self.w, x), ids.unbind(1), strict=True))
        parts = (w * precise(text.embedded(token), x) * (age >= i)[..., None] for i, (w, token) in taps)
        return x + sum(parts, torch.zeros_like(precise(x, x))).to(x.dtype)

    def _history(self, text: Text) -> tuple[Tensor, Tensor]:
        """Ids [B,i,Q] of the tokens i before each, and how many [B,Q] there are in its text, as far as they are known."""
        reach, new = self.noted, text.ids.shape[1]
        ids, age = torch.cat((text.before.flip(1).clamp(min=0), text.ids), 1), since(text.first, (text.before >= 0).sum(1) - 1)
        return torch.stack([ids[:, reach - i :][:, :new] for i in range(reach + 1)], 1), age
