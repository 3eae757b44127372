"""Text to evaluate on, and its tokens: what every Python installation has, files, or any `datasets` dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch

from .local_paths import existing

BosRule = Literal["auto", "always", "never"]
SHORT = 512
"""Tokens of a short text, or half of the native context if that is less."""


@dataclass
class TextArguments:
    """The text."""

    text: list[str] = field(default_factory=list, metadata={"help": "text files, one document each; default English that every Python has"})
    dataset: str | None = field(default=None, metadata={"help": "`datasets` hub id or local .json, .jsonl, .csv, .parquet file"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of the dataset"})
    split: str = field(default="train", metadata={"help": "split of the dataset"})
    text_column: str = field(default="text", metadata={"help": "column of the dataset that holds the text"})

    def __post_init__(self) -> None:
        if self.text and self.dataset:
            raise ValueError("--text and --dataset exclude each other")


class CorpusError(ValueError):
    """There is no text, or not enough of it."""


@dataclass(frozen=True)
class Text:
    """One document and where it comes from."""

    name: str
    content: str


@dataclass(frozen=True)
class Document:
    """The tokens of one document.

    Args:
        name: where the text comes from; it ends up in the results.
        input_ids: [L] int64, with the BOS token first where the rule adds one.
        text: what they are the tokens of; None where that is not known.
        spans: the characters of `text` that each token stands for, (0, 0) for BOS; None where the tokenizer keeps no offsets.
    """

    name: str
    input_ids: torch.Tensor
    text: str | None = None
    spans: tuple[tuple[int, int], ...] | None = None

    def __len__(self) -> int:
        return int(self.input_ids.numel())

    @property
    def sha256(self) -> str:
        """Identifies the exact tokens (16 hex digits)."""
        return hashlib.sha256(self.input_ids.to(torch.int64).cpu().numpy().tobytes()).hexdigest()[:16]

    @cached_property
    def byte_ends(self) -> tuple[int, ...] | None:
        """For each token, the UTF-8 bytes of text up to its end; None where the tokenizer keeps no offsets."""
        if self.text is None or self.spans is None:
            return None
        bytes_before = [0, *accumulate(len(character.encode("utf-8", "replace")) for character in self.text)]
        return tuple(bytes_before[end] for _, end in self.spans)

    def head(self, tokens: int) -> Document:
        """Its first tokens."""
        return self.part(0, tokens)

    def part(self, start: int, stop: int) -> Document:
        """The tokens start ... stop - 1, and the text that they stand for."""
        ids = self.input_ids[start:stop]
        if self.text is None or not self.spans:
            return Document(self.name, ids)
        spans = self.spans[start:stop]
        first, last = spans[0][0], spans[-1][1]
        return Document(self.name, ids, self.text[first:last], tuple((begin - first, end - first) for begin, end in spans))

    def tail(self, tokens: int, bos: bool = False) -> Document:
        """Its last tokens, where `bos` with its BOS first, which is one of them."""
        return piece(self, len(self) - tokens, len(self) - bos, bos)


def embedded_corpus() -> str:
    """The help topics of the standard library: real English that every Python has (465,000 characters in 3.11, PSF licence).

    The text differs between Python versions, so compare results across machines by the document hashes they carry.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def read_texts(paths: Sequence[str | Path]) -> list[str]:
    """Read UTF-8 text files, one document each. Raises `CorpusError` for a file that is missing, empty or not UTF-8."""
    return [read_text(Path(path)) for path in paths]


def read_text(path: Path) -> str:
    """Read one UTF-8 text file."""
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise CorpusError(f"cannot read the text file {path}: {error.strerror}") from None
    if not content.strip():
        raise CorpusError(f"the text file {path} is empty")
    return content


def dataset_texts(
    dataset: str, config: str | None = None, split: str = "test", text_column: str = "text", streaming: bool = False
) -> Iterator[Text]:
    """The rows of a `datasets` dataset, one document each; empty rows are left out.

    Args:
        dataset: a hub id, a folder, or a local .json, .jsonl, .csv or .parquet file.
        config: the dataset's configuration name.
        split: which split to read. A local file has one split, "train", which is what is read whatever this says.
        text_column: the column that holds the text.
        streaming: read no more than is asked for, instead of downloading all of it first.

    Raises:
        CorpusError: the dataset cannot be read, or has no such column, or something else than text or nothing in it.
    """
    rows = open_dataset(dataset, config, split, streaming)
    empty = True
    with loading(dataset):
        check_column(rows, dataset, text_column)
        for index, row in enumerate(rows):
            content = row[text_column]
            if content is not None and not isinstance(content, str):
                raise not_text(dataset, text_column, type(content).__name__)
            if content and content.strip():
                empty = False
                yield Text(f"{dataset}[{index}]", content)
    if empty:
        raise CorpusError(f"{dataset} ({split}) has no text in column {text_column!r}")


def check_column(rows: Any, dataset: str, text_column: str) -> None:
    """Raise `CorpusError` where a dataset has no such column, or something else than text in it."""
    columns = rows.column_names or list(next(iter(rows), {}))
    if columns and text_column not in columns:
        raise CorpusError(f"{dataset} has no column {text_column!r}; it has: {', '.join(columns)}")
    kind = (rows.features or {}).get(text_column)
    held = "string" if kind is None else getattr(kind, "dtype", type(kind).__name__)
    if held not in ("string", "large_string", "null"):
        raise not_text(dataset, text_column, held)


def not_text(dataset: str, text_column: str, kind: str) -> CorpusError:
    """The error for a column of something else."""
    return CorpusError(f"the column {text_column!r} of {dataset} holds {kind}, not text: name the column of the text (text_column)")


@contextmanager
def loading(dataset: str) -> Iterator[None]:
    """Whatever a reader of files raises within the block, as a `CorpusError` that names the dataset."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except CorpusError:
        raise
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise CorpusError(f"cannot load the dataset {dataset}: {reason}") from None


def open_dataset(dataset: str, config: str | None, split: str, streaming: bool = False) -> Any:
    """Open a local file with the builder its extension names, anything else through `datasets.load_dataset`."""
    from datasets import load_dataset

    if Path(dataset).is_file() and not Path(dataset).stat().st_size:
        raise CorpusError(f"the file {dataset} is empty")
    builders = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
    builder = builders.get(Path(dataset).suffix.lower())
    with loading(dataset):
        dataset = existing(dataset, "dataset")
        if builder is not None:
            return load_dataset(builder, data_files=dataset, split="train", streaming=streaming)
        return load_dataset(dataset, config, split=split, streaming=streaming)


def encode(tokenizer: Any, text: Text, bos: BosRule = "auto") -> Document:
    """Tokenize one document without any special token but BOS.

    Args:
        bos: "always" or "never" put the tokenizer's BOS token first; "auto" does what the tokenizer itself does.
    """
    prefix = [tokenizer.bos_token_id] if adds_bos(tokenizer, bos) else []
    encoded = tokenizer(text.content, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    spans = ((0, 0),) * len(prefix) + tuple(map(tuple, encoded["offset_mapping"])) if tokenizer.is_fast else None
    return Document(text.name, torch.tensor(prefix + encoded["input_ids"], dtype=torch.long), text.content, spans)


def adds_bos(tokenizer: Any, bos: BosRule) -> bool:
    """Whether a document starts with BOS under this rule."""
    if bos == "never" or (bos == "auto" and tokenizer.bos_token_id is None):
        return False
    if tokenizer.bos_token_id is None:
        raise CorpusError("bos='always', but the tokenizer has no BOS token")
    return bos == "always" or tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def encode_texts(tokenizer: Any, texts: Sequence[str] | None) -> list[Document]:
    """Texts that a caller gave, tokenized; the embedded one where there are none."""
    named = [Text(f"text {number}", text) for number, text in enumerate(texts)] if texts else [Text("pydoc_data.topics", embedded_corpus())]
    return [encode(tokenizer, text) for text in named]


def cut(document: Document, length: int, count: int, bos: bool = False) -> list[Document]:
    """Cut the start of a document into `count` consecutive documents of `length` tokens, each with BOS first where `bos`.

    Raises `CorpusError` where the document is too short, saying how many tokens there are and how many are needed.
    """
    step = length - bos
    if len(document) - bos < step * count:
        raise CorpusError(
            f"{document.name} has {len(document):,} tokens; {count} x {length:,} = {count * length:,} are needed: "
            "ask for shorter lengths or fewer documents, or bring more text"
        )
    starts = range(0, step * count, step)
    return [piece(document, start, start + step, bos) for start in starts]


def piece(document: Document, start: int, stop: int, bos: bool) -> Document:
    """The tokens start ... stop - 1 of a document, counted after BOS."""
    name = document.name if start == 0 else f"{document.name}@{start}"
    rest = document.part(start + bos, stop + bos)
    spans = None if rest.spans is None else ((0, 0),) * bos + rest.spans
    return Document(name, torch.cat([document.input_ids[: int(bos)], rest.input_ids]), rest.text, spans)
