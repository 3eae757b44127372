"""The documents of a run as a stream: tokenized one at a time, the short ones named and left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch

from ..corpus import BosRule, CorpusError, Document, Text, encode
from ..processes import Processes

Source = str | torch.Tensor | Document | Text | dict[str, Any]
Documents = Source | Iterable[Source]


def stream(documents: Documents, tokenizer: Any, bos: BosRule, max_tokens: int | None = None) -> Iterator[Document]:
    """Texts, rows of a dataset with a column "text", token ids or ready documents, as `Document`s of at most `max_tokens` tokens.

    Raises:
        ValueError: text without a tokenizer; token ids that are not one document.
    """
    for index, source in enumerate(as_iterable(documents)):
        document = as_document(source, tokenizer, bos, index)
        yield document if max_tokens is None else document.head(max_tokens)


def as_iterable(documents: Documents) -> Iterable[Source]:
    """A single document as a list of one."""
    return [documents] if isinstance(documents, (str, torch.Tensor, Document, Text)) else documents


def as_document(source: Source, tokenizer: Any, bos: BosRule, index: int) -> Document:
    """Text or token ids as a `Document`."""
    if isinstance(source, Document):
        return source
    if isinstance(source, torch.Tensor):
        if source.squeeze().ndim != 1:
            raise ValueError(f"input_ids must be one document, [L] or [1, L], got {list(source.shape)}; pass several as a list")
        return Document(f"document {index}", source.squeeze().cpu())
    text = source["text"] if isinstance(source, dict) else source
    if tokenizer is None:
        raise ValueError("text needs a tokenizer: perplexity(model, tokenizer, text)")
    return encode(tokenizer, text if isinstance(text, Text) else Text(f"document {index}", text), bos)


def usable(documents: Iterable[Document], need: int, count: int | None = None) -> Iterator[tuple[Document, str]]:
    """Each document with the reason to skip it (empty: it is used), up to the `count`th that is used.

    Raises:
        CorpusError: at the end, where none has `need` tokens.
    """
    seen = used = longest = 0
    for document in documents:
        seen, longest = seen + 1, max(longest, len(document))
        short = len(document) < need
        yield document, f"fewer than {need} tokens" if short else ""
        used += not short
        if used == count:
            return
    if not used:
        raise CorpusError(
            f"the longest of {seen} documents has {longest:,} tokens and {need:,} are needed: ask for shorter lengths, or bring longer text"
        )


def peeked(pairs: Iterator[tuple[Document, str]]) -> tuple[Document, Iterator[tuple[Document, str]]]:
    """The first document that is used, and the whole stream: too little text comes to light before anything is run."""
    before = []
    for pair in pairs:
        before.append(pair)
        if not pair[1]:
            break
    return before[-1][0], chain(before, pairs)


def shared(pairs: Iterable[tuple[Document, str]], processes: Processes) -> Iterator[tuple[int, Document, str]]:
    """Number, document and reason of this process's share; the first process has those that are skipped too."""
    used = 0
    for index, (document, reason) in enumerate(pairs):
        if (used if not reason else 0) % processes.count == processes.rank:
            yield index, document, reason
        used += not reason
