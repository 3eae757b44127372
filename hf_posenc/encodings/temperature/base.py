"""What the temperatures share, and the growth with the length of the text that most of them are made of."""

from __future__ import annotations

from torch import Tensor

from ..base import PositionalEncoding, precise


class Temperature(PositionalEncoding):
    """A factor on the rotated queries, and so on their products with all keys. What is added to the scores is not multiplied.

    Patched on its own it acts beside the encoding of the model, which stays as it is. Any other encoding takes one by the option
    `temperature` (`composing`).
    """

    caches = "raw"

    def factor(self, pos: Tensor) -> Tensor:
        """The factor of queries at `pos` [1 or B,1,Q], real numbers of 0 or more: broadcastable to [B,H,Q]."""
        raise NotImplementedError

    def rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        return self.heated(q, q_pos), k

    def heated(self, q: Tensor, q_pos: Tensor) -> Tensor:
        """Queries [B,H,Q,D] at `q_pos` [B,Q] times their factor."""
        pos = precise(q_pos, q)[:, None].clamp(min=0)  # a scheme for training may draw others
        return (q * self.factor(pos)[..., None]).to(q.dtype) if q.shape[2] else q
