from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, create, register
from ..options import one_of, positive
from .limited import Limited

GROWTH = ("interpolation", "hierarchical")
STARTS = ("normal", "sinusoidal")


@register("learned")
class LearnedAbsolute(Limited):
    """One learned vector a position (Gehring et al., 2017, arXiv:1705.03122, section 3.1).

    x_t -> x_t + P[t].

    A model that has such a table keeps it; a longer one is made from it. Elsewhere P starts as `init` says.

    Args:
        max_positions: rows of P; default the native context. A position beyond is an error.
        init_std: standard deviation of a new table that is "normal".
        init: "normal", or "sinusoidal": the vectors of `sinusoidal`.
        growth: of a table with n rows. "interpolation" is linear, with the first and the last vector where they were.
            "hierarchical" (Su, 2020, kexue.fm/archives/7947) leaves the first n positions as they are and reaches n^2:
            P[t] -> a U[t div n] + (1 - a) U[t mod n], with U = (P - a P[0]) / (1 - a).
        alpha: a. At 1/2, t div n and t mod n could be exchanged; the nearer 0, the less the far positions differ.

    Needs training, wherever the table is new or longer than it was; after hierarchical growth, less, and none within the first n.
    Differs from the author's code (bert4keras): the longer table is written out and its rows are trained, not the n of U.
    """

    needs_training = "pretraining or fine-tuning with the new table"
    beyond = "the learned table of"
    remedy = "Grow it"

    def __init__(
        self,
        geometry: Geometry,
        *,
        max_positions: int | None = None,
        init_std: float = 0.02,
        init: str = "normal",
        growth: str = "interpolation",
        alpha: float = 0.4,
    ):
        super().__init__(geometry, max_positions)
        std = positive("init_std", init_std)
        self.growth, self.alpha = one_of("growth", growth, GROWTH), positive("alpha", alpha, 0.01, 0.99)
        self.table = nn.Parameter(torch.randn(self.rows, geometry.hidden_size) * std)
        if one_of("init", init, STARTS) == "sinusoidal":
            self.starts_as = "sinusoidal"
            waves = create("sinusoidal", geometry).embed(torch.zeros_like(self.table)[None], torch.arange(self.rows)[None])
            self.table.data = waves[0]

    def table_rows(self) -> Tensor:
        return self.table

    def adopt(self, table: Tensor) -> None:
        if table.shape[1] == self.table.shape[1]:
            self.table, self.starts_as = nn.Parameter(self._resized(table.detach())), ""

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        return x + F.embedding(pos.to(self.table.device), self.table).to(x)

    def _resized(self, table: Tensor) -> Tensor:
        """`table` [L,M] with as many rows as there are positions: grown, or cut."""
        if self.rows <= len(table):
            return table[: self.rows].clone()
        wide = table.to(torch.promote_types(table.dtype, torch.float32))
        grown = interpolated(wide, self.rows) if self.growth == "interpolation" else decomposed(wide, self.rows, self.alpha)
        return grown.to(table.dtype)


def interpolated(table: Tensor, rows: int) -> Tensor:
    """A table [L,M] as one of more rows, linear between its own."""
    return F.interpolate(table.T[None], size=rows, mode="linear", align_corners=True)[0].T.contiguous()


def decomposed(table: Tensor, rows: int, alpha: float) -> Tensor:
    """A table [n,M] as one of up to n^2 rows: that of the block of n positions, and that of the place within it."""
    n = len(table)
    if rows > n * n:
        raise ValueError(f"a table of {n} positions grows to {n * n} by hierarchical decomposition, not to max_positions={rows}")
    unit, pos = (table - alpha * table[:1]) / (1 - alpha), torch.arange(rows, device=table.device)
    grown = alpha * unit[pos // n] + (1 - alpha) * unit[pos % n]
    return torch.cat((table, grown[n:]))  # the first n are equal but for rounding
