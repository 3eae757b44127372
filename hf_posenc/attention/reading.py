"""The tokens of a row as they are read: padding in between is read past."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..encodings.base import at_hand


class Order:
    """The order in which the tokens of each row are read: padding comes after the others.

    Args:
        real: which are no padding, [1 or B,Q] bool; None where all are.
        each: they are read each by itself, so that all may stay in their places.
    """

    def __init__(self, real: Tensor | None, each: bool = False):
        self.real = None if real is None or (at_hand(real) and bool(real.all())) else real
        self.order = self.rank = None
        if self.real is not None and not each:
            self.order, self.rank = (~self.real).long().sort(dim=1, stable=True).indices, self.real.long().cumsum(1)

    def close(self, x: Tensor) -> Tensor:
        """x [B,Q,...] of the tokens, in the order in which they are read."""
        return x if self.order is None else _rows(x, self.order)

    def spread(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """x [B,Q,...] of the tokens as they are read, back in their places; of padding, that of the token before it.

        Args:
            before: that of the token before all, [B,1,...]; by default that of the first.
        """
        if self.rank is None:
            return x
        return _rows(x, (self.rank - 1).clamp(min=0)) if before is None else _rows(torch.cat((before, x), 1), self.rank)

    def spread_states(self, state: Tensor, lookback: int, before: Tensor | None = None) -> Tensor:
        """States [B,A,Q,(1+lookback)*n] of the tokens as they are read, back in their places; padding has those of the tokens before it
        alone, and zeros for its own.

        Args:
            before: those of the token before all, [B,A,1,(1+lookback)*n]; by default there is none.
        """
        if self.real is None:
            return state
        before = torch.zeros_like(state[:, :, :1]) if before is None else before
        spread = self.spread(state.transpose(1, 2), before.transpose(1, 2)).transpose(1, 2)
        own = state.shape[-1] // (1 + lookback)
        return torch.where(self.real[:, None, :, None], spread, F.pad(spread[..., :-own], (own, 0)))


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x [B,K,...] at `index` [B,Q]: [B,Q,...]."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]
