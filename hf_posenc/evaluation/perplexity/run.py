"""One protocol at several lengths, on one document after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..corpus import Document
from ..measure import Meter
from ..reach import check_position_table, is_length_dependent
from ..token_nll import Head, Progress, decode, input_device, window_nll
from .protocols import Protocol, Window
from .tally import Record, Tally

ONE_PASS = 16384
PASS_TOKENS = 2048
"""Inputs longer than ONE_PASS go through the model PASS_TOKENS at a time: beyond weights and KV cache, memory is then flat in length."""


@dataclass(frozen=True)
class Run:
    """How a document is scored.

    Args:
        protocol: which predictions count, given which context.
        lengths: context lengths in tokens, ascending.
        one_forward: take the whole curve from one pass, where the protocol is nested.
        length_dependent: the model computes its frequencies from the length of the whole input (see `is_length_dependent`).
        pass_tokens: tokens in one pass through the KV cache; None runs a window in one pass without cache.
        batch_tokens: windows of equal shape run together up to so many tokens.
        last_k: how many predictions before L make `Score.last_nats`.
        chunk: tokens per chunk of output layer and loss.
    """

    protocol: Protocol
    lengths: tuple[int, ...]
    one_forward: bool
    length_dependent: bool
    pass_tokens: int | None
    batch_tokens: int
    last_k: int
    chunk: int

    @classmethod
    def of(
        cls,
        model: Any,
        protocol: Protocol,
        lengths: Sequence[int],
        *,
        one_forward: bool | None = None,
        pass_tokens: int | None = None,
        batch_tokens: int = 8192,
        last_k: int = 256,
        chunk: int = 1024,
    ) -> Run:
        """A run that fits the model.

        Raises:
            ValueError: a length that the protocol or the model's position table does not have; passes through the cache where decoding
                is not evaluation.
        """
        ordered = check_lengths(protocol, lengths)
        check_position_table(model, ordered[-1])
        dependent = is_length_dependent(model)
        if pass_tokens is not None and dependent and not protocol.through_cache:
            raise ValueError(
                "pass_tokens= is not exact for this model: its rope_type computes the frequencies from the length of the input and "
                "leaves cached keys as they are. Leave it out, or patch the model with an encoding of hf_posenc"
            )
        if protocol.through_cache:
            pass_tokens = 1
        elif pass_tokens is None and ordered[-1] > ONE_PASS and not dependent:
            pass_tokens = PASS_TOKENS
        shared = protocol.nested and (not dependent if one_forward is None else one_forward)
        return cls(protocol, ordered, shared or protocol.through_cache, dependent, pass_tokens, batch_tokens, last_k, chunk)

    @property
    def longest(self) -> int:
        """The largest length."""
        return self.lengths[-1]

    @property
    def cache(self) -> bool:
        """Whether the KV cache is used."""
        return self.pass_tokens is not None and self.pass_tokens < self.longest

    @property
    def forward(self) -> str:
        """What goes through the model together, in words."""
        windows = "one per document and length" if self.protocol.nested else "one per window"
        what = "one per document" if self.one_forward else windows
        return f"{what}, {self.pass_tokens} token(s) at a time through the KV cache" if self.cache else what

    def windows(self, tokens: int) -> Iterator[tuple[int, list[Window]]]:
        """The windows to run in a document of so many tokens, by length."""
        for length in (self.longest,) if self.one_forward else self.lengths:
            yield length, list(self.protocol.windows(tokens, length, self.longest))

    def tokens(self, tokens: int) -> int:
        """How many tokens will go through the model for a document of `tokens` tokens."""
        return sum(len(window) for _, windows in self.windows(tokens) for window in windows)

    def record(
        self,
        model: Any,
        head: Head | None,
        document: Document,
        index: int,
        keys: torch.Tensor | None = None,
        progress: Progress | None = None,
    ) -> Record:
        """Score one document; `keys` [T] bool marks its key tokens.

        Raises:
            FloatingPointError: a loss is infinite or not a number; the message says where.
        """
        found = Record(index, document.name, len(document), document.sha256, ran=self.tokens(len(document)))
        with Meter(input_device(model)) as meter:
            for length, windows in self.windows(len(document)):
                for batch in batches(windows, self.batch_tokens):
                    for window, nll in zip(batch, self.nats(model, head, document, batch, progress), strict=True):
                        self.count(found, document, window, checked(nll, document, window), length, keys)
        found.seconds, found.peak_memory, found.peak_memory_kind = meter.seconds, meter.peak, meter.kind
        return found

    def nats(
        self, model: Any, head: Head | None, document: Document, batch: Sequence[Window], progress: Progress | None = None
    ) -> torch.Tensor:
        """Nats [B, s] of the scored predictions of windows of equal shape."""
        ids = document.input_ids
        inputs = torch.stack([ids[window.start : window.stop] for window in batch])
        targets = torch.stack([ids[window.first : window.last] for window in batch])
        if self.length_dependent:
            decode(model, inputs[:1, :1].to(input_device(model)))  # stock dynamic NTK keeps the base of the longest input until a short one
        first = batch[0]
        where: dict[str, Any] = {"offset": first.offset, "pass_tokens": self.pass_tokens}
        return window_nll(model, inputs, targets, first.scored, head, self.chunk, progress=progress, **where)

    def count(self, found: Record, document: Document, window: Window, nll: torch.Tensor, length: int, keys: torch.Tensor | None) -> None:
        """Add the nats of one window to the lengths it stands for."""
        for each in self.lengths if self.one_forward else (length,):
            part = window.cut(each) if self.one_forward else window
            tally = found.tallies.setdefault(each, Tally())
            tally.add(document, part, nll[: part.last - part.first], each, self.last_k, keys)
        if length == self.longest:
            found.add_buckets(window, nll)


def batches(windows: Sequence[Window], tokens: int) -> Iterator[list[Window]]:
    """Neighbouring windows of equal shape, as many together as have at most `tokens` tokens."""
    batch: list[Window] = []
    for window in windows:
        if batch and (shape(window) != shape(batch[0]) or (len(batch) + 1) * len(window) > tokens):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def shape(window: Window) -> tuple[int, slice, int]:
    """What windows that run together have in common."""
    return len(window), window.scored, window.offset


def check_lengths(protocol: Protocol, lengths: Sequence[int]) -> tuple[int, ...]:
    """The lengths in ascending order, each once; ValueError for one that the protocol is not defined at."""
    if not lengths:
        raise ValueError("lengths= must name at least one context length, of at least 2 tokens")
    for length in lengths:
        protocol.check(length)
    return tuple(sorted(set(lengths)))


def checked(nll: torch.Tensor, document: Document, window: Window) -> torch.Tensor:
    """The same nats, or `FloatingPointError` with the first token where they are not finite."""
    bad = (~nll.isfinite()).nonzero()
    if len(bad):
        at = int(bad[0])
        raise FloatingPointError(
            f"the loss of token {window.first + at} of {document.name} is {nll[at].item()} in an input of {len(window)} tokens "
            f"({len(bad)} of {len(nll)} predictions are not finite)"
        )
    return nll
