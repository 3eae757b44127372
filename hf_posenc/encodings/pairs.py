"""Sets of (query, key) pairs, as the stages of an encoding see them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Region(NamedTuple):
    """A set of (query, key) pairs that share one way of rotating. Regions of one encoding are disjoint; a pair in none is hidden.

    Args:
        rotate: (q [B,H,Q,D], k [B,G,K,D], q_pos [B,Q], k_pos [B,K]) -> rotated q, k. The keys come as `cached_key` made them.
        keys: q_pos, of any shape -> (first, end), of that shape: each query's keys have positions first <= k_pos < end; None for all.
        queries: (first, end): the queries that have pairs here have positions first <= q_pos < end; None for all.
    """

    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    keys: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    queries: tuple[int, int] | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether there are pairs that do not belong here."""
        return self.keys is not None or self.queries is not None

    def pairs(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The pairs of queries at `q_pos` [B,Q] and keys at `k_pos` [B,K] that belong here: broadcastable to [B,1,Q,K] bool."""
        here = torch.ones((), dtype=torch.bool, device=q_pos.device)
        if self.queries is not None:
            here = here & ((self.queries[0] <= q_pos) & (q_pos < self.queries[1]))[:, None, :, None]
        if self.keys is not None:
            first, end = (x[:, None, :, None] for x in self.keys(q_pos))
            here = here & (first <= k_pos[:, None, None, :]) & (k_pos[:, None, None, :] < end)
        return here


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of queries and a range of keys, with all that is known of their tokens.

    Args:
        q: [B,H,Q,D], not rotated. k: [B,G,K,D], as `cached_key` made them. q_pos: [B,Q]. k_pos: [B,K].
        scaling: the factor on the products.
        seen: which pairs meet, [B or 1,H or 1,Q,K] bool; None where the stage is not to know.
        q_state: [B,A,Q,n] and k_state: [B,A,K,n]: what `state` said of the tokens, or the sums of `increments`; None without `state`.
        axes: positions of the queries [n,B,Q] on several axes; None for an encoding of one axis.
    """

    q: Tensor
    k: Tensor
    q_pos: Tensor
    k_pos: Tensor
    scaling: float
    seen: Tensor | None = None
    q_state: Tensor | None = None
    k_state: Tensor | None = None
    axes: Tensor | None = None

    def part(self, batch: slice, rows: slice, keys: slice, seen: Tensor | None) -> Block:
        """Of the rows `batch` of the batch, the queries `rows` and the keys `keys`, of which those pairs meet that are `seen`."""
        q_state = None if self.q_state is None else self.q_state[batch, :, rows]
        k_state = None if self.k_state is None else self.k_state[batch, :, keys]
        q_pos, k_pos = self.q_pos[batch, rows], self.k_pos[batch, keys]
        axes = None if self.axes is None else self.axes[:, batch, rows]
        return Block(self.q[batch, :, rows], self.k[batch, :, keys], q_pos, k_pos, self.scaling, seen, q_state, k_state, axes)


@dataclasses.dataclass(frozen=True)
class Text:
    """The new tokens of a batch, and what is known of those before them.

    Args:
        ids: [B,Q]. pos: [B,Q].
        first: [B,Q] bool: the token begins a text. The one before it is padding, of another text in the row, or none.
        before: [B,n]: the `notes` of the token before the first of these; any numbers where that begins a text.
        embedded: ids of any shape -> embeddings [...,M], without positions.
    """

    ids: Tensor
    pos: Tensor
    first: Tensor
    before: Tensor
    embedded: Callable[[Tensor], Tensor]
