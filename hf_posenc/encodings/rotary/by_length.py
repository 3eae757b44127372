"""Rotations whose frequencies depend on how long the text is by the time of the query."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ..base import Region
from .scaling import ScaledRoPE


class RoPEByLength(ScaledRoPE):
    """A query at position i sees all keys turned with the frequencies of a text of i + 1 tokens.

    Each query row is a region of its own kind, so one pass over a text gives what token-by-token decoding gives. Keys
    are cached raw. Stock transformers uses the frequencies of the whole input for every row and leaves keys in the
    cache as they were first turned, so that its evaluation and its decoding disagree.
    """

    relative = False
    caches = "raw"

    def regimes(self, q_pos: Tensor) -> Tensor:
        """The text length in tokens whose frequencies serve the query at `q_pos`; same shape."""
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
        regimes = self.regimes(q_pos)
        lengths = regimes.unique().tolist()
        if len(lengths) == 1:
            return [Region(partial(self._rotate_at, lengths[0]))]
        return [Region(partial(self._rotate_at, n), rows=regimes == n) for n in lengths]

    def rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{self.name} turns every query row differently; it has regions")

    def _rotate_at(self, length: int, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        inv_freq = self.frequencies_at(length).to(q.device)
        return self.rotate_one(q, q_pos, inv_freq), self.rotate_one(k, k_pos, inv_freq)
