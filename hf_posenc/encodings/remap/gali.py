from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding

from ..base import Geometry, register, widest
from ..options import count
from ..rotary.by_length import RoPEBySteps
from ..rotary.rope import cos_sin, once, turn_pairs


@register("gali")
class GALI(RoPEBySteps):
    """GALI, greedy attention logit interpolation (Li et al., 2025, arXiv:2502.02659, eq. 2 and 3).

    In a text of n > L tokens, L the native context, as few of the first tokens as must stand 1 / g apart, and all others 1 apart, so
    that the last is at L - 1: token t is at p(t) = t / g if t < c, else t - (n - L), with g = ceil((n - W) / (L - W)) and
    c = n - L + ceil((n - L) / (g - 1)). Query i is at ceil(p(i)), and its score with key j is interpolated between those of the
    whole positions around p(j): the distances in between are never met.

    Args:
        window: W in tokens, less than L: the last W always stand 1 apart; default 128, or L / 4 where that is less.
        step: beyond L, n grows in steps of this many tokens, so that queries share positions; default 3000, the authors' chunk, or L
            where that is less. 1 is their rule for decoding.

    Works without training. Differs from the paper: n grows by whole steps to the end, where there the last one ends with the text, and
    decoding has steps of 1; query i is at ceil(p(i)), as in the authors' code, not at p(i); no random numbers are added to scores that
    are interpolated, normal ones with a deviation of the distance over L.
    """

    composes = True

    def __init__(self, geometry: Geometry, *, window: int | None = None, step: int | None = None):
        native = geometry.max_positions
        super().__init__(geometry, step=min(3000, native) if step is None else step, factor=1.0)
        self.window = min(128, native // 4) if window is None else count("window", window, 0)
        if self.window >= native:
            raise ValueError(f"window must be less than the native context of {native} tokens, got {self.window}")

    def frequencies_for(self, pos: Tensor) -> Tensor:
        """What queries at `pos` [...] share is n: [...,1]."""
        return torch.where(pos < self.settled_length, self.settled_length, self.stepped(pos))[..., None]

    def place(self, pos: Tensor, length: Tensor) -> Tensor:
        """p of tokens at `pos` [B,T] in texts of `length` [1 or B,1] tokens."""
        pos, n, native = pos.to(widest(pos.device)), length.to(widest(pos.device)), self.geometry.max_positions
        group = ((n - self.window) / (native - self.window)).ceil()
        crowded = n - native + ((n - native) / (group - 1).clamp(min=1)).ceil()
        return torch.where(pos < crowded, pos / group, pos - (n - native))

    def _rotate_by(self, length: Tensor, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys = (self.place(pos, length.view(-1, 1)) for pos in (q_pos, k_pos))
        table = once(q_pos, (self, k.dtype), lambda: self._table(k))
        ahead, behind = _rows(table, keys.ceil()), _rows(table, keys.floor())
        between = torch.lerp(ahead, behind, (keys.ceil() - keys)[:, None, :, None].to(table))
        return self._turned_by(q, _rows(table, queries.ceil())), self._turned_by(k, between)

    def _turned_by(self, x: Tensor, cosines: Tensor) -> Tensor:
        cos, sin = cosines.chunk(2, -1)
        return turn_pairs(x, cos, sin, self.geometry)

    def _table(self, like: Tensor) -> Tensor:
        """Cosines, then sines, of the whole positions from 0 to L: [L + 1,r]."""
        pos = torch.arange(self.geometry.max_positions + 1, device=like.device)[None]
        return torch.cat(cos_sin(pos, self.inv_freq, self.attention_factor, like), -1)[0, 0]


def _rows(table: Tensor, pos: Tensor) -> Tensor:
    """[B,1,T,r] at whole positions [B,T]; padding may lie before the text, and keys after the query behind its end."""
    return embedding(pos.long().clamp(0, len(table) - 1), table)[:, None]
