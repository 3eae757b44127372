"""Encodings of the embeddings that are defined for so many positions and no more."""

from __future__ import annotations

from typing import ClassVar

from ..base import Geometry, PositionalEncoding
from ..options import LONGEST_TABLE, count


class Limited(PositionalEncoding):
    """Defined at `max_positions` positions, or at those of the native context."""

    any_length = False
    beyond: ClassVar[str] = "the last of"
    """What a position is past, in words that go on with "... positions"."""
    remedy: ClassVar[str] = "Declare more"

    def __init__(self, geometry: Geometry, max_positions: int | None):
        super().__init__(geometry)
        self.rows = geometry.max_positions if max_positions is None else count("max_positions", max_positions, at_most=LONGEST_TABLE)

    @property
    def context_length(self) -> int:
        return self.rows

    def check_positions(self, last: int) -> None:
        if last >= self.rows:
            raise ValueError(
                f"position {last} lies past {self.beyond} {self.rows} positions. {self.remedy} with "
                f'hf_posenc.patch(model, "{self.name}", max_positions={last + 1}) and fine-tune, or shorten the input.'
            )
