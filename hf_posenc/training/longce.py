"""LongCE: a training loss that counts more what a long context helps to predict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..encodings.options import count, positive


@dataclass(frozen=True)
class LongCE:
    """Weights of the tokens in the cross-entropy (LongCE, Fang et al. 2024, arXiv 2410.23771, section 4.1).

        chunk_loss(model, weights=LongCE())

    Token x counts min(p(x | long context) / p(x | short context), gamma) times. Both are predictions of the model that is trained, as it is
    at that step, and no gradient goes through the weight. The long context is the row, the short one the `short` to `short` + `stride` - 1
    tokens before x, read at the positions that came with them, or from 0 on where none came. A token weighs 1 that has no longer context
    than that, and so does every one while the model evaluates. The sum is divided as without weights.

    It costs `reads(length)` tokens for each token of a row, forward and without gradients: 4.2 at the published numbers and 32,768 tokens.

    Args:
        gamma: the largest weight.
        short: tokens of the short context.
        stride: tokens that share a short window.
    """

    gamma: float = 5.0
    short: int = 4096
    stride: int = 1024

    def __post_init__(self) -> None:
        positive("gamma", self.gamma)
        count("short", self.short)
        count("stride", self.stride)

    def __str__(self) -> str:
        return f"longce (gamma={self.gamma:g}, short={self.short}, stride={self.stride})"

    def windows(self, length: int) -> Iterator[tuple[int, int]]:
        """Begin and end of the short windows of a row; in each, the tokens after the first `short` are weighed.

        The first window of the paper is left out, as its short context is the long one.
        """
        for start in range(self.stride, length - self.short, self.stride):
            yield start, min(start + self.short + self.stride, length)

    def reads(self, length: int) -> float:
        """How many tokens are read for each token of a row."""
        return sum(stop - start for start, stop in self.windows(length)) / length

    def weights(self, long: Tensor, short: Tensor) -> Tensor:
        """Of tokens with these nats [N] in the long and the short context, where NaN says that there is no shorter one."""
        return torch.where(short.isnan(), 1.0, (short - long.detach()).exp().clamp(max=self.gamma))
