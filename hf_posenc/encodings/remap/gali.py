from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, register, widest
from ..options import count
from ..rotary.by_length import RoPEBySteps
from ..rotary.rope import cos_sin, turn_pairs


@register("gali")
class GALI(RoPEBySteps):
    """GALI, greedy attention logit interpolation (Li et al., 2025, arXiv:2502.02659, section 3).

    In a text of n > L tokens, L the native context, as few of the first tokens as must stand 1 / g apart, and all others 1 apart, so
    that the last is at L - 1: token t is at p(t) = t / g if t < c, else t - (n - L), with g = ceil((n - W) / (L - W)) and
    c = n - L + ceil((n - L) / (g - 1)). Query i is at ceil(p(i)), and its score with key j is interpolated between those of the
    whole positions around p(j): the distances in between are never met.

    Args:
        window: W in tokens, less than L: the last W always stand 1 apart; default 128, or L / 4 where that is less.
        step: beyond L, n grows in steps of this many tokens, so that queries share positions; default 3000, the authors' chunk, or L
            where that is less. 1 is their rule for decoding.

    Works without training. Differs from the authors' code: n ends at a whole step, where it ends a long text early, and decodes in
    steps of 1; no random numbers on the interpolated scores (they add normal ones with a deviation of the distance over n).
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
        length = length.view(-1, 1)
        queries, keys = self.place(q_pos, length).ceil(), self.place(k_pos, length)
        share = (keys.ceil() - keys)[:, None, :, None]
        cos, sin = cos_sin(queries, self.inv_freq, self.attention_factor, q)
        ahead, behind = (cos_sin(whole, self.inv_freq, self.attention_factor, k) for whole in (keys.ceil(), keys.floor()))
        between = [torch.lerp(x, y, share.to(x)) for x, y in zip(ahead, behind, strict=True)]
        return turn_pairs(q, cos, sin, self.geometry), turn_pairs(k, between[0], between[1], self.geometry)
