"""Rotations whose frequencies depend on how long the text is by the time of the query."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ..base import Region, has_values
from .rope import cos_sin, turn_pairs
from .scaling import ScaledRoPE


class RoPEByLength(ScaledRoPE):
    """A query at position i sees all keys turned with the frequencies of a text of i + 1 tokens.

    Each query row is a region of its own kind, so one pass over a text gives what token-by-token decoding gives. Keys
    are cached raw. Stock transformers uses the frequencies of the whole input for every row and leaves keys in the
    cache as they were first turned, so that its evaluation and its decoding disagree.
    """

    relative = False
    caches = "raw"
    data_dependent = True

    def regime(self, position: int) -> tuple[int, int]:
        """The text length in tokens whose frequencies serve the query at `position`, and the first later position that they do not."""
        raise NotImplementedError

    def frequencies_at(self, length: int) -> Tensor:
        """Inverse frequencies [r/2] for a text of `length` tokens."""
        raise NotImplementedError

    def frequencies(self) -> tuple[Tensor, float] | None:
        return None

    def rope_parameters(self):
        return None

    def inverse_frequencies(self) -> Tensor:
        return self.frequencies_at(1)

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        position, last = (int(x) for x in q_pos.aminmax()) if has_values(q_pos) else (0, 0)
        regions = []
        while position <= last:
            length, end = self.regime(position)
            regions.append(Region(partial(self._rotate_at, length), queries=(position, end)))
            position = end
        return regions if len(regions) > 1 else [regions[0]._replace(queries=None)]

    def rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{self.name} turns every query row differently; it has regions")

    def _rotate_at(self, length: int, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        inv_freq = self.frequencies_at(length).to(q.device)
        return self._turned(q, q_pos, inv_freq), self._turned(k, k_pos, inv_freq)

    def _turned(self, x: Tensor, pos: Tensor, inv_freq: Tensor) -> Tensor:
        cos, sin = cos_sin(pos, inv_freq, self.attention_factor, x)
        return turn_pairs(x, cos, sin, self.geometry.interleaved)
