"""What a perplexity run found, and everything needed to read the number a year later."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..result import Saved
from ..token_nll import exp


@dataclass(frozen=True)
class Score:
    """The score at one context length.

    Args:
        length: L, in tokens, BOS included; what it means is for the protocol to say.
        tokens_scored: predictions, summed over the documents.
        nats: mean nats per predicted token, every token weighted equally.
        perplexity: exp(nats).
        bits_per_byte: bits per UTF-8 byte of the predicted text; None where the tokenizer keeps no offsets.
        last_nats: mean nats of the last `Result.last_k` predictions of the windows that reach L.
        standard_error: of `nats`, over documents; None with fewer than two.
        document_nats, document_tokens: nats and number of the predictions of each of `Result.documents`, so that results can be pooled
            again (`hf_posenc.metric_path`).
        key_tokens, key_nats: how many of the predictions are of key tokens, and their mean nats; None where key tokens were not asked for.
    """

    length: int
    tokens_scored: int
    nats: float
    perplexity: float
    bits_per_byte: float | None
    last_nats: float | None
    standard_error: float | None
    document_nats: list[float]
    document_tokens: list[int]
    key_tokens: int = 0
    key_nats: float | None = None

    @property
    def longppl(self) -> float | None:
        """Perplexity of the key tokens, LongPPL; None where there are none."""
        return None if self.key_nats is None else exp(self.key_nats)


@dataclass(frozen=True)
class Bucket:
    """Mean nats of the tokens at the positions start ... stop - 1 of their window."""

    start: int
    stop: int
    tokens_scored: int
    nats: float


@dataclass(frozen=True)
class Result(Saved):
    """One perplexity run: the curve over lengths, and what was measured how, with what.

    Args:
        protocol: its name (`hf_posenc.evaluation.PROTOCOLS`) and `protocol_options` its options.
        forward: what went through the model together: "one per document" is the whole curve from one pass.
        head: "chunked", or "full logits" where the model's own forward had to be used.
        encoding: the name asked for ("stock": the model as it was loaded) and `options` its options.
        fingerprint: hash of the tensors that are live in the model, from `hf_posenc.inspect`; None where it cannot be inspected.
        state: what `hf_posenc.inspect` says, in words.
        bos: the rule and whether a BOS token is there.
        documents: name, tokens and hash of each document scored.
        skipped: name, tokens and reason of each document left out.
        cache: whether the KV cache was used.
        complete: False where the run was interrupted: the numbers are those of the documents named.
        processes: how many processes shared the documents.
        key_tokens: how key tokens were chosen, and by which evaluator; None where they were not.
        scores: one `Score` for each length, ascending.
        buckets: nats by position, from the longest length.
        seconds, tokens_per_second: of the forward passes, everything included; of the slowest process and of all of them.
        peak_memory: bytes in the largest process, and `peak_memory_kind` what was measured.
        settings: free for the caller (the recipe stores its arguments).
    """

    protocol: str
    protocol_options: dict[str, Any]
    forward: str
    head: str
    encoding: str
    options: dict[str, Any]
    fingerprint: str | None
    state: str | None
    model: str
    tokenizer: str | None
    bos: str
    documents: list[dict[str, Any]]
    skipped: list[dict[str, Any]]
    dtype: str
    device: str
    attention: str
    cache: bool
    versions: dict[str, str]
    scores: list[Score]
    last_k: int
    buckets: list[Bucket]
    seconds: float
    tokens_per_second: float
    peak_memory: int | None
    peak_memory_kind: str | None
    complete: bool = True
    processes: int = 1
    key_tokens: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def curve(self) -> dict[int, float]:
        """Perplexity by length."""
        return {score.length: score.perplexity for score in self.scores}

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read what `save` wrote."""
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        scores = [Score(**score) for score in found.pop("scores")]
        return cls(scores=scores, buckets=[Bucket(**bucket) for bucket in found.pop("buckets")], **found)
