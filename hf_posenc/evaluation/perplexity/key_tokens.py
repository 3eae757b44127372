"""Key tokens: those that a long context helps to predict (LongPPL, Fang et al. 2024, arXiv 2410.23771)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..corpus import Document
from ..token_nll import Progress, find_head
from .protocols import Sliding
from .run import Run, batches, checked

SHORT = 4096
"""Tokens of the short context, as published."""


@dataclass(frozen=True)
class KeyTokens:
    """Which tokens count, by the predictions of an evaluator model.

    A token x is a key token where

        LSD = log p(x | long context) - log p(x | short context) > alpha   and   LCL = log p(x | long context) > beta    (their eq. 2, 5, 6)

    The long context is the whole text, the short one the `short` to `short` + `stride` - 1 tokens before x. A text that is longer than
    the evaluator can read goes through it in windows of `long` tokens, so memory does not grow with the text; the paper has none such.

    Args:
        long: tokens of a long window; None takes the context of the evaluator.
        short: tokens of the short context; None takes the published 4,096, or a quarter of `long` where that is less.
        stride: tokens that share a short window; None takes a quarter of `short`, as published.
        alpha: in nats, of a difference of log-probabilities.
        beta: in nats, of a log-probability.
        last: look at so many tokens at the end of a text only, as if the text began there.
    """

    long: int | None = None
    short: int | None = None
    stride: int | None = None
    alpha: float = 2.0
    beta: float = -2.0
    last: int | None = None

    def of(self, context: int | None) -> KeyTokens:
        """With all numbers of tokens, for an evaluator that can read `context` tokens.

        Raises:
            ValueError: it is not known how many, or the long window is not longer than a short one.
        """
        if (long := self.long or context) is None:
            raise ValueError("the configuration of the evaluator does not say how many tokens it reads: say it with KeyTokens(long=...)")
        short = self.short or min(SHORT, long // 4)
        stride = self.stride or max(1, short // 4)
        if not short + stride < long:
            raise ValueError(f"key tokens need short + stride < long, got {short}, {stride} and {long} (what the evaluator can read)")
        return replace(self, long=long, short=short, stride=stride)

    @property
    def windows(self) -> tuple[tuple[Sliding, int], tuple[Sliding, int]]:
        """Protocol and length of the long and of the short windows."""
        assert self.long is not None and self.short is not None and self.stride is not None
        return (Sliding(max(1, self.long // 4)), self.long), (Sliding(self.stride), self.short + self.stride)

    def find(self, model: Any, document: Document, progress: Progress | None = None) -> torch.Tensor:
        """[T] bool, True at key tokens."""
        read = document if self.last is None else document.part(max(0, len(document) - self.last), len(document))
        runs = [Run.of(model, protocol, [length]) for protocol, length in self.windows]
        long, short = (nats(model, run, read, progress) for run in runs)
        keys = torch.zeros(len(document), dtype=torch.bool)
        keys[len(document) - len(long) :] = (short - long > self.alpha) & (-long > self.beta)
        return keys


def nats(model: Any, run: Run, document: Document, progress: Progress | None) -> torch.Tensor:
    """Nats [T - 1] of every token but the first, each in the window that `run` scores it in."""
    found, head = torch.zeros(len(document) - 1), find_head(model, document.input_ids)
    for _, windows in run.windows(len(document)):
        for batch in batches(windows, run.batch_tokens):
            for window, nll in zip(batch, run.nats(model, head, document, batch, progress), strict=True):
                found[window.first - 1 : window.last - 1] = checked(nll, document, window)
    return found


def carried(keys: torch.Tensor, read: Document, document: Document) -> torch.Tensor:
    """Key tokens [T'] of a text in the tokens of `read`, as those [T] of `document`: the tokens that lie within the text of key tokens.

    Neighbours among the key tokens are one stretch of text, as in the authors' code.
    """
    if not keys.any():
        return torch.zeros(len(document), dtype=torch.bool)
    starts, ends = stretches(torch.tensor(read.spans)[keys])
    first, last = torch.tensor(document.spans).T.contiguous()
    at = torch.searchsorted(starts, first, right=True) - 1  # the last stretch that begins no later: none of those before reaches further
    return (at >= 0) & (last <= ends[at])


def stretches(spans: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Begins and ends [S] of the stretches of text that spans [N, 2] in order make, those that touch being one."""
    apart, edge = spans[1:, 0] != spans[:-1, 1], torch.tensor([True])
    return spans[torch.cat([edge, apart]), 0], spans[torch.cat([apart, edge]), 1]
