from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base import Block, Geometry, PositionalEncoding, precise, products, register, widest
from ..options import positive
from ..rotary.rope import power_frequencies

MOST = {torch.float64: 300.0, torch.float32: 30.0}
"""Of the powers of e that queries and keys are multiplied by, by precision: what is left over is room for queries and keys."""


@register("hope_hyperbolic")
class HyperbolicHoPE(PositionalEncoding):
    """Hyperbolic rotary positional encoding (Dai et al., 2025, arXiv:2509.05218, eq. 9 and 12).

    score(i, j) = e^(-d t') sum over the pairs n of q_n B(d t_n) k_n / sqrt(D), with d = i - j, t_n = theta^(-2n/D) and the Lorentz boost
    B(a) = [[cosh a, sinh a], [sinh a, cosh a]]. With t' above all t_n each pair (2n, 2n + 1) decays with the distance: the sum of its two
    numbers as e^(-d (t' - t_n)), their difference as e^(-d (t' + t_n)). A key after the query scores 0.

    Args:
        damping: t' over the largest t_n, which is 1; above 1.

    Needs pretraining: scores vanish at a distance of tens of tokens. Differs from the paper: t' is fixed, and its default ours, since no
    code of the authors is public; the factors are made for some queries at a time, relative to the first of them, where boosts by
    absolute positions overflow within a hundred tokens. Where a model caps its scores, these stay uncapped.
    """

    relative = True
    data_dependent = True
    mixes_products = True
    needs_training = "pretraining"
    rates: Tensor

    def __init__(self, geometry: Geometry, *, damping: float = 1.1):
        super().__init__(geometry)
        self.damping = positive("damping", damping, at_least=1.0, at_most=10.0)
        if self.damping == 1:
            raise ValueError("damping must be above 1, or the first pair never decays, got 1")
        if geometry.head_dim % 2:
            raise ValueError(f"hope_hyperbolic boosts pairs of dimensions, but head_dim is odd: {geometry.head_dim}")

    def reset_buffers(self) -> None:
        speed = power_frequencies(10_000.0, self.geometry.head_dim)
        self.set_buffer("rates", torch.cat((self.damping - speed, self.damping + speed)))

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        return block.q[..., :1] * 0, block.k[..., :1]

    def mix(self, scores: Tensor, block: Block) -> Tensor:
        wide, pos = widest(scores.device), block.q_pos
        q, k = (_sums(x.to(wide)) for x in (block.q, block.k))
        reach = int(MOST[wide] / (self.damping + 1))
        if pos.shape[1] == 1:
            total = self._boosted(q, k, pos, block.k_pos, pos, reach)
        else:
            total = torch.zeros_like(scores, dtype=wide)
            starts, rows = _windows(pos, reach)
            for start, some in zip(starts, rows, strict=True):
                here = (pos[:, some] >= start) & (pos[:, some] < start + reach)
                part = self._boosted(q[:, :, some], k, pos[:, some], block.k_pos, start, reach)
                total = total.index_copy(2, some, torch.where(here[:, None, :, None], part, total[:, :, some]))
        past = (block.k_pos[:, None] <= pos[:, :, None])[:, None]
        return scores + precise(torch.where(past, total, 0) * block.scaling, scores)

    def _boosted(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, start: Tensor, reach: int) -> Tensor:
        """Products [B,H,Q,K] of sums and differences that have decayed, for queries from `start` [B,1] to less than `reach` after it."""
        rates = self.rates.to(q.dtype)
        after = (q_pos - start).clamp(0, reach)[:, None, :, None] * rates
        before = (start - k_pos).clamp(min=-reach)[:, None, :, None] * rates
        return products(q * (-after).exp(), k * (-before).exp())


def _windows(pos: Tensor, reach: int) -> tuple[Tensor, Sequence[Tensor]]:
    """Starts [W,B,1] of windows of `reach` positions that hold all of `pos` [B,Q], and the columns of `pos` that are in each for some row.

    They depend on the positions, which are looked at once.
    """
    known, starts, columns = pos.cpu(), [], []
    left = torch.ones_like(known, dtype=torch.bool)
    while left.any():
        start = known.masked_fill(~left, known.max()).amin(1, keepdim=True)
        here = left & (known < start + reach)
        starts.append(start)
        columns.append(here.any(0).nonzero()[:, 0])
        left = left & ~here
    return torch.stack(starts).to(pos.device), torch.cat(columns).to(pos.device).split([len(x) for x in columns])


def _sums(x: Tensor) -> Tensor:
    """The sums of the pairs of x [...,D], then their differences, so that products stay."""
    a, b = x[..., ::2], x[..., 1::2]
    return torch.cat((a + b, a - b), -1) * 0.5**0.5
