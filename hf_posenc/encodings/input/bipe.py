from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Block, Geometry, PositionalEncoding, Text, create, precise, register
from ..options import LONGEST_TABLE, count, one_of, token_ids
from ..rotary.rope import RoPE
from ..widths import Term, packed, unpacked, widened
from .runs import since

BETWEEN = ("rope", "alibi")
INIT_STD = 0.02
END = -1
"""What a token that ends a segment notes in the place of its index."""


@register("bipe")
class BiPE(PositionalEncoding):
    """Bilevel positional encoding (He et al., 2024, arXiv:2401.16421, section 3).

    x_t -> x_t + P[n], with n = 0, 1, 2 ... the index of a token within its segment, and RoPE or ALiBi of the number of the segment in the
    place of the position. A segment ends with a separator.

    Args:
        separators: ids of the tokens that end a segment, such as the full stop and the line break.
        between: "rope" or "alibi", as the model has them, between segments.
        rows: of P; tokens beyond the last share it.

    Needs training. The authors' code has the separators of Llama 2, 869 and 13, and 1024 rows.
    """

    separator_ids: Tensor
    relative = True
    axes = 2
    noted = 2
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, separators: Sequence[int] = (), between: str = "rope", rows: int = 1024):
        super().__init__(geometry)
        self.separators, self.between = token_ids("separators", separators), create(one_of("between", between, BETWEEN), geometry)
        self.table = nn.Parameter(torch.randn(count("rows", rows, at_most=LONGEST_TABLE), geometry.hidden_size) * INIT_STD)

    def reset_buffers(self) -> None:
        self.set_buffer("separator_ids", torch.tensor(self.separators, dtype=torch.long))

    def places(self, text: Text) -> tuple[Tensor, Tensor]:
        """Index within the segment, and number of the segment [B,Q]."""
        if not self.separators:
            raise ValueError("bipe has to know what ends a segment: give it separators=, a list of ids of tokens")
        index, segment = text.before.unbind(1)
        ends = torch.cat((index[:, None] == END, self._ends(text)[:, :-1]), 1)
        ended = ends.cumsum(1)
        begun = torch.where(text.first, ended, -segment[:, None].clamp(min=0)).cummax(1).values
        return since(text.first | ends, index), ended - begun

    def _ends(self, text: Text) -> Tensor:
        return (text.ids[..., None] == self.separator_ids).any(-1)

    def notes(self, text: Text) -> Tensor:
        index, segment = self.places(text)
        return torch.stack((index.masked_fill(self._ends(text), END), segment), -1)

    def embed_text(self, x: Tensor, text: Text) -> Tensor:
        return x + F.embedding(self.places(text)[0].clamp(max=len(self.table) - 1), self.table).to(x)

    def locate(self, text: Text) -> Tensor:
        return torch.stack(self.places(text))

    def cached_key(self, k: Tensor, pos: Tensor) -> Tensor:
        if isinstance(self.between, RoPE):
            return self.between.rotate_one(k, pos[1])
        segment = pos[1][:, None, :, None].expand(len(k), -1, -1, -1)
        return torch.cat((k, packed(segment, k.shape[1], k.dtype)), -1)

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        assert block.axes is not None
        own, width = block.axes[1], block.q.shape[-1]
        if isinstance(self.between, RoPE):
            return self.between.rotate_one(block.q, own), block.k
        segment = unpacked(block.k[..., width:], 1, precise(block.q[..., :0], block.q).dtype)[..., 0]
        slopes = precise(cast(Any, self.between).slopes, block.q)[:, None]
        terms = [Term(-slopes * own[:, None], None), Term(None, slopes * segment)]
        return widened(block.q, block.k[..., :width], terms, block.scaling)
