"""What a perplexity run found, and everything needed to read the number a year later."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Score:
    """The score of the first `length` tokens of every document.

    Args:
        length: L, in tokens, BOS included.
        tokens_scored: predictions, summed over the documents (L - 1 from a document of at least L tokens).
        nats: mean nats per predicted token, every token weighted equally.
        perplexity: exp(nats).
        bits_per_byte: bits per UTF-8 byte of the predicted text; None where the tokenizer keeps no offsets.
        last_nats: mean nats of the last `Result.last_k` predictions below L, over the documents that reach L.
        standard_error: of `nats`, over documents; None with fewer than two.
    """

    length: int
    tokens_scored: int
    nats: float
    perplexity: float
    bits_per_byte: float | None
    last_nats: float | None
    standard_error: float | None


@dataclass(frozen=True)
class Bucket:
    """Mean nats of the tokens at the positions start ... stop - 1 of their document."""

    start: int
    stop: int
    tokens_scored: int
    nats: float


@dataclass(frozen=True)
class Result:
    """One perplexity run: the curve over lengths, and what was measured how, with what.

    Args:
        protocol: "prefix": the first L tokens of each document.
        forward: "one per document" (the whole curve from one pass) or "one per document and length".
        head: "chunked", or "full logits" where the model's own forward had to be used.
        encoding: the name asked for ("stock": the model as it was loaded) and `options` its options.
        fingerprint: hash of the tensors that are live in the model, from `hf_posenc.inspect`; None where it cannot be inspected.
        state: what `hf_posenc.inspect` says, in words.
        bos: the rule and whether a BOS token is there.
        documents: name, tokens and hash of each document scored.
        skipped: name, tokens and reason of each document left out.
        scores: one `Score` for each length, ascending.
        buckets: nats by position, from the longest length.
        seconds, tokens_per_second: of the forward passes, everything included.
        peak_memory: bytes, and `peak_memory_kind` what was measured.
        settings: free for the caller (the recipe stores its arguments).
    """

    protocol: str
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
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def curve(self) -> dict[int, float]:
        """Perplexity by length."""
        return {score.length: score.perplexity for score in self.scores}

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers."""
        return asdict(self)

    def save(self, path: str | Path) -> Path:
        """Write the result as JSON, atomically. Returns the path."""
        return write_atomically(path, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read what `save` wrote."""
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        scores = [Score(**score) for score in found.pop("scores")]
        return cls(scores=scores, buckets=[Bucket(**bucket) for bucket in found.pop("buckets")], **found)


def write_atomically(path: str | Path, text: str) -> Path:
    """Write a text file so that it is either complete or not there, also if the process dies meanwhile."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path
