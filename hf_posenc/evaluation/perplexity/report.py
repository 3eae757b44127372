"""Results on the screen and as a table file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...tables import print_numbers
from ...variants import STOCK
from ..report import csv_text, optional
from .result import Result, Score


def print_table(results: dict[str, Result], scratch: Path) -> None:
    """Print the perplexity of each encoding at each length side by side, pooled over the documents by the metric of `evaluate`.

    Args:
        results: by encoding.
        scratch: a folder for what that library keeps on disk.
    """
    from ...metrics.token_perplexity.token_perplexity import TokenPerplexity

    metric = TokenPerplexity(keep_in_memory=True, cache_dir=str(scratch))
    first = next(iter(results.values()))
    keys = ["LongPPL"] if first.key_tokens else []
    more = [*keys, f"last-{first.last_k} nats", "± nats", "tokens/s", "peak GB"]
    rows = []
    for name, result in results.items():
        label = name if result.complete else f"{name} (unfinished)"
        found = [metric.compute(nats=score.document_nats, tokens=score.document_tokens) for score in result.scores]
        rows.append([label, *(f"{each['perplexity']:.4g}" for each in found), *footnotes(result, found[-1]["standard_error"])])
    title = f"{heading(first)}, {first.scores[-1].tokens_scored:,} tokens scored at {first.scores[-1].length:,}"
    print_numbers(title, ["encoding", *(f"{score.length:,}" for score in first.scores), *more], rows)
    for line in remarks(results):
        print(line)


def heading(result: Result) -> str:
    """What was measured, in a few words."""
    options = "".join(f", {name} {value:,}" for name, value in result.protocol_options.items())
    return f"{Path(result.model).name}: perplexity, protocol {result.protocol}{options}"


def remarks(results: dict[str, Result]) -> Iterator[str]:
    """What the table does not say: the documents, and what a key token is."""
    first = next(iter(results.values()))
    reasons = Counter(each["reason"] for each in first.skipped)
    skipped = "".join(f", {number} skipped ({reason})" for reason, number in reasons.items())
    yield f"{len(first.documents)} document(s){skipped}; BOS {first.bos}; forward: {first.forward}; {first.dtype}, {first.attention}"
    if first.key_tokens and (score := first.scores[-1]).key_tokens is not None:
        who = "the stock model" if (name := first.key_tokens["evaluator"]) == STOCK else name
        yield f"LongPPL: perplexity at {score.length:,} of the {score.key_tokens:,} key tokens, which a long context helps {who} to predict"


def footnotes(result: Result, error: float | None) -> list[str]:
    """The other columns of one row, at the longest length; `error` is the standard error of its nats."""
    longest = result.scores[-1]
    keys = [optional(longest.longppl, ".4g")] if result.key_tokens else []
    return [
        *keys,
        optional(longest.last_nats, ".3f"),
        optional(error, ".3f"),
        f"{result.tokens_per_second:,.0f}",
        optional(None if result.peak_memory is None else result.peak_memory / 1e9, ".2f"),
    ]


def to_csv(results: dict[str, Result]) -> str:
    """One line for each encoding and length."""
    rows = [
        {
            "encoding": name,
            "options": " ".join(f"{key}={value}" for key, value in result.options.items()),
            "protocol": result.protocol,
            "complete": result.complete,
            **pooled_score(score),
            "fingerprint": result.fingerprint,
        }
        for name, result in results.items()
        for score in result.scores
    ]
    return csv_text(rows)


def pooled_score(score: Score) -> dict[str, Any]:
    """Its numbers over all documents."""
    return {name: value for name, value in vars(score).items() if not name.startswith("document_")}
