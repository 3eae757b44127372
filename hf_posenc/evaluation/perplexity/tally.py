"""Sums over predictions: what one document adds to a result, and how the documents become scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch

from ..corpus import Document
from ..token_nll import exp
from .protocols import Window
from .result import Bucket, Score

FIRST_BUCKET = 256


@dataclass
class Tally:
    """Sums over the predictions of one document at one context length.

    Args:
        tokens, nats: how many predictions, and their nats.
        bytes: UTF-8 bytes of the predicted text; None where they are not known.
        last_tokens, last_nats: of those among the last k positions below the length.
        key_tokens, key_nats: of those at key tokens.
    """

    tokens: int = 0
    nats: float = 0.0
    bytes: int | None = 0
    last_tokens: int = 0
    last_nats: float = 0.0
    key_tokens: int = 0
    key_nats: float = 0.0

    def add(self, document: Document, window: Window, nll: torch.Tensor, length: int, last_k: int, keys: torch.Tensor | None) -> None:
        """Count the nats [last - first] of a window's scored tokens."""
        nll = nll.double()
        ends = document.byte_ends
        self.tokens += len(nll)
        self.nats += nll.sum().item()
        self.bytes = None if ends is None or self.bytes is None else self.bytes + ends[window.last - 1] - ends[window.first - 1]
        if window.offset + len(window) == length:
            tail = nll[-last_k:]
            self.last_tokens += len(tail)
            self.last_nats += tail.sum().item()
        if keys is not None:
            chosen = nll[keys[window.first : window.last]]
            self.key_tokens += len(chosen)
            self.key_nats += chosen.sum().item()


@dataclass
class Record:
    """What was found in one document; a line of the journal.

    Args:
        index: its number in the stream of documents.
        name, tokens, sha256: which document it is.
        reason: why it was skipped; empty for one that was scored.
        tallies: context length -> sums.
        buckets: at the longest length, first position of the bucket -> [predictions, nats].
        ran: tokens that went through the model.
        seconds, peak_memory, rank: what it took, and which process did it.
    """

    index: int
    name: str
    tokens: int
    sha256: str
    reason: str = ""
    tallies: dict[int, Tally] = field(default_factory=dict)
    buckets: dict[int, list[float]] = field(default_factory=dict)
    ran: int = 0
    seconds: float = 0.0
    peak_memory: int | None = None
    peak_memory_kind: str | None = None
    rank: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Record:
        """What `to_dict` gave, also after JSON has made strings of its keys."""
        tallies = {int(length): Tally(**tally) for length, tally in found.pop("tallies").items()}
        buckets = {int(start): sums for start, sums in found.pop("buckets").items()}
        return cls(tallies=tallies, buckets=buckets, **found)

    def add_buckets(self, window: Window, nll: torch.Tensor) -> None:
        """Count nats by the position in the window, in ranges that double: 1 ... 255, 256 ... 511, 512 ... 1023 and so on."""
        first = window.first - window.start
        edges = [1, *(FIRST_BUCKET << step for step in range((first + len(nll)).bit_length()))]
        for start, stop in pairwise(edges):
            within = nll[max(0, start - first) : max(0, stop - first)].double()
            if len(within):
                sums = self.buckets.setdefault(start, [0, 0.0])
                self.buckets[start] = [sums[0] + len(within), sums[1] + within.sum().item()]


def pool(records: Sequence[Record], length: int) -> Score:
    """The score of all documents at one length, every prediction weighted equally."""
    tallies = [record.tallies[length] for record in records]
    nats, tokens = [t.nats for t in tallies], [t.tokens for t in tallies]
    found = pooled(nats, tokens)
    total = 0 if any(t.bytes is None for t in tallies) else sum(t.bytes or 0 for t in tallies)
    return Score(
        length=length,
        tokens_scored=found["tokens"],
        nats=found["nats"],
        perplexity=found["perplexity"],
        bits_per_byte=sum(nats) / math.log(2) / total if total else None,
        last_nats=ratio((t.last_nats, t.last_tokens) for t in tallies),
        standard_error=found["standard_error"],
        document_nats=nats,
        document_tokens=tokens,
        key_tokens=sum(t.key_tokens for t in tallies),
        key_nats=ratio((t.key_nats, t.key_tokens) for t in tallies),
    )


def pooled(nats: Sequence[float], tokens: Sequence[int]) -> dict[str, Any]:
    """Mean nats of all predictions, perplexity, how many they are, and the standard error of the mean, in whatever order they come.

    Args:
        nats: [N], each summed over the predictions of one text.
        tokens: [N], how many predictions that is.

    Raises:
        ValueError: there is no prediction.
    """
    count = sum(tokens)
    if count < 1:
        raise ValueError("there is no prediction to pool: nats and tokens of at least one are needed")
    mean = math.fsum(nats) / count
    return {"nats": mean, "perplexity": exp(mean), "tokens": count, "standard_error": standard_error(nats, tokens)}


def ratio(pairs: Iterable[tuple[float, int]]) -> float | None:
    """Sum over sum; None where there is nothing."""
    nats, tokens = (sum(each) for each in zip(*pairs, strict=True))
    return nats / tokens if tokens else None


def standard_error(nats: Sequence[float], tokens: Sequence[int]) -> float | None:
    """Standard error of the token-weighted mean over texts, a ratio estimate (Cochran 1977, eq. 2.46); None with fewer than two."""
    texts, count = len(nats), sum(tokens)
    if texts < 2:
        return None
    mean = math.fsum(nats) / count
    squares = math.fsum((summed - each * mean) ** 2 for summed, each in zip(nats, tokens, strict=True))
    return math.sqrt(squares * texts / (texts - 1)) / count


def pool_buckets(records: Sequence[Record], longest: int) -> list[Bucket]:
    """Nats by position, over all documents; the last bucket ends at the longest input."""
    starts = sorted({start for record in records for start in record.buckets})
    ends = [2 * start if start > 1 else FIRST_BUCKET for start in starts]
    sums = [[sum(each) for each in zip(*(r.buckets[start] for r in records if start in r.buckets), strict=True)] for start in starts]
    return [Bucket(start, min(end, longest), int(n), nats / n) for start, end, (n, nats) in zip(starts, ends, sums, strict=True)]
