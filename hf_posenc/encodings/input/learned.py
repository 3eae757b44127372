from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, create, register
from ..options import one_of, positive
from .limited import Limited

STARTS = ("normal", "sinusoidal")


@register("learned")
class LearnedAbsolute(Limited):
    """One learned vector a position (Gehring et al., 2017, arXiv:1705.03122, section 3.1).

    x_t -> x_t + P[t].

    A model that has such a table keeps it; a longer one is interpolated from it linearly, so that the first and the last
    vector stay first and last. Elsewhere P starts as `init` says.

    Args:
        max_positions: rows of P; default the native context. A position beyond is an error.
        init_std: standard deviation of a new table that is "normal".
        init: "normal", or "sinusoidal": the vectors of `sinusoidal`.

    Needs training, wherever the table is new or longer than it was.
    """

    needs_training = "pretraining or fine-tuning with the new table"
    beyond = "the learned table of"
    remedy = "Grow it by interpolation"

    def __init__(self, geometry: Geometry, *, max_positions: int | None = None, init_std: float = 0.02, init: str = "normal"):
        super().__init__(geometry, max_positions)
        std = positive("init_std", init_std)
        self.table = nn.Parameter(torch.randn(self.rows, geometry.hidden_size) * std)
        if one_of("init", init, STARTS) == "sinusoidal":
            self.starts_as = "sinusoidal"
            waves = create("sinusoidal", geometry).embed(torch.zeros_like(self.table)[None], torch.arange(self.rows)[None])
            self.table.data = waves[0]

    def table_rows(self) -> Tensor:
        return self.table

    def adopt(self, table: Tensor) -> None:
        if table.shape[1] == self.table.shape[1]:
            self.table = nn.Parameter(resize(table.detach(), self.rows))

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        return x + F.embedding(pos.to(self.table.device), self.table).to(x)


def resize(table: Tensor, rows: int) -> Tensor:
    """A table [L,M] with another number of rows: interpolated linearly to more, cut to fewer."""
    if rows <= len(table):
        return table[:rows].clone()
    grown = F.interpolate(table.to(torch.promote_types(table.dtype, torch.float32)).T[None], size=rows, mode="linear", align_corners=True)
    return grown[0].T.to(table.dtype).contiguous()
