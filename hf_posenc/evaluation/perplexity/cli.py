"""The perplexity recipe: one loaded model, several encodings, the curve of each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from ...command import exit_status
from ...files import write_atomically
from ...flags import at_least, parse
from ...variants import EncodingArguments
from ..corpus import Document, Text, TextArguments, adds_bos, cut, dataset_texts, embedded_corpus, encode, read_texts
from ..models import ModelArguments, check_tokenizer, encoded, load_model, load_tokenizer
from ..processes import Processes
from ..report import Bar, own_bar_only, pictures
from ..side_by_side import SideBySide, settings_of, started
from .documents import stream
from .evaluator import Evaluator
from .key_tokens import KeyTokens
from .measurement import Texts
from .perplexity import perplexity
from .protocols import PROTOCOLS, create_protocol
from .report import heading, print_table, to_csv
from .result import Result
from .run import Run, check_lengths

KEYS = "key_tokens"
"""Folder of what evaluators found."""


def is_protocol(flag: str, value: str) -> None:
    """Raise ValueError for a protocol that there is not."""
    PROTOCOLS[value]


@dataclass
class PerplexityArguments(TextArguments, EncodingArguments, ModelArguments):
    """Perplexity against context length for several positional encodings of one model."""

    lengths: Annotated[list[int], at_least(2)] = field(
        default_factory=lambda: [1024, 2048, 4096], metadata={"help": "context lengths in tokens"}
    )
    protocol: Annotated[str, is_protocol] = field(
        default="prefix", metadata={"help": f"what is scored given which context: {', '.join(PROTOCOLS)}"}
    )
    stride: Annotated[int | None, at_least(1)] = field(
        default=None, metadata={"help": "of `sliding` (512) and `sliding_all` (256), in tokens"}
    )
    target: Annotated[int | None, at_least(1)] = field(
        default=None, metadata={"help": "tokens scored by `fixed_target` and `offset` (256)"}
    )
    split: str = field(default="test", metadata={"help": "split of the dataset"})
    streaming: bool = field(default=True, metadata={"help": "read the dataset as a stream, no more of it than is used"})
    documents: Annotated[int | None, at_least(1)] = field(
        default=None,
        metadata={"help": "how many documents to use; without --text and --dataset, built-in text is cut into as many (1)"},
    )
    min_tokens: Annotated[int | None, at_least(1)] = field(
        default=None, metadata={"help": "skip documents with fewer; default what the protocol needs"}
    )
    max_tokens: Annotated[int | None, at_least(2)] = field(default=None, metadata={"help": "cut documents to their first tokens"})
    bos: Literal["auto", "always", "never"] = field(
        default="auto", metadata={"help": "BOS before each document; auto: as the tokenizer does"}
    )
    key_tokens: bool = field(default=False, metadata={"help": "count key tokens apart (LongPPL), chosen by --evaluator"})
    evaluator: str | None = field(
        default=None, metadata={"help": "model that chooses key tokens: hub id, local path, or 'demo'; default the stock model"}
    )
    key_short: Annotated[int | None, at_least(8)] = field(
        default=None,
        metadata={"help": "the short context of that choice, in tokens; default 4096, or a quarter of the evaluator's context if less"},
    )
    pass_tokens: Annotated[int | None, at_least(1)] = field(
        default=None, metadata={"help": "tokens in one pass through the KV cache; default 2048 beyond 16384"}
    )
    batch_tokens: Annotated[int, at_least(1)] = field(default=8192, metadata={"help": "equal windows run together up to so many tokens"})
    chunk: Annotated[int, at_least(1)] = field(default=1024, metadata={"help": "tokens per chunk of output layer and loss"})
    last_k: Annotated[int, at_least(1)] = field(default=256, metadata={"help": "predictions before L that make the last-k column"})
    output_dir: str = field(default="runs/perplexity", metadata={"help": "where the JSON, CSV and PNG files go"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.key_short is not None and self.evaluator is None and not self.key_tokens:
            raise ValueError("--key_short is of key tokens: ask for them with --evaluator or --key_tokens")

    @property
    def protocol_options(self) -> dict[str, int]:
        """Those that were given."""
        return {name: value for name in ("stride", "target") if (value := getattr(self, name)) is not None}

    @property
    def how(self) -> dict[str, Any]:
        """Arguments of `perplexity` that have the same name here."""
        names = ("lengths", "protocol", "bos", "min_tokens", "max_tokens", "pass_tokens", "batch_tokens", "chunk", "last_k")
        same = {name: getattr(self, name) for name in names}
        return {**same, "count": self.documents, **self.protocol_options}

    @property
    def keys(self) -> dict[str, Any]:
        """How key tokens are chosen, for `Evaluator`; what is found stays, for other models that are measured."""
        return {"rule": KeyTokens(short=self.key_short), "folder": Path(self.output_dir) / KEYS}


def main(argv: list[str] | None = None) -> int:
    """Run the recipe; returns the exit status, 130 after Ctrl-C."""
    return exit_status(lambda: run(*parse([PerplexityArguments], "hf-posenc perplexity", argv)))


@own_bar_only()
def run(arguments: PerplexityArguments) -> dict[str, Result]:
    """Measure every encoding, skipping those already on disk with the same settings, and compare them.

    Raises:
        Interrupted: Ctrl-C; what was finished is reported and on disk.
    """
    return Curves.of(arguments, started(arguments, arguments.output_dir)).run()


@dataclass
class Curves(SideBySide[Result]):
    """The perplexity of each encoding. All that can be wrong is found before the first is measured."""

    kind = Result
    corpus: Corpus
    evaluator: Evaluator | None

    @classmethod
    def of(cls, arguments: PerplexityArguments, processes: Processes) -> Curves:
        """Text, model and encodings that the command line asks for."""
        options = arguments.plan()
        protocol = create_protocol(arguments.protocol, **arguments.protocol_options)
        lengths = check_lengths(protocol, arguments.lengths)
        path = arguments.path
        tokenizer = load_tokenizer(path)
        corpus = open_corpus(arguments, tokenizer, arguments.max_tokens or lengths[-1] * (4 if protocol.whole_documents else 1))
        which = arguments.bos, arguments.max_tokens, arguments.documents, arguments.min_tokens
        texts = Texts.of(corpus, tokenizer, *which, protocol, lengths[-1])
        texts.choose()  # too little text comes to light before a model is loaded
        evaluator = None
        if arguments.evaluator is not None:
            evaluator = Evaluator.of(arguments.evaluator, **arguments.keys, device=arguments.device)
            find_keys(evaluator, texts, processes)  # before there is another model in memory
        model = load_model(path, arguments)
        check_tokenizer(tokenizer, model)
        if evaluator is None and arguments.key_tokens:
            evaluator = Evaluator.stock(model, **arguments.keys)
        keys = {} if evaluator is None else {"keys": evaluator.settings}
        plan = settings_of(arguments, model, options, {"lengths": list(lengths), "text": corpus.identity, **keys})
        if evaluator is not None:
            find_keys(evaluator, texts, processes)
        return cls(arguments, processes, tokenizer, model, plan, corpus, evaluator)

    def find(self, name, settings, journal, advance):
        encodings, how = {name: settings["options"]}, self.arguments.how
        shared = {"encodings": encodings, "journal": journal, "settings": settings, "progress": advance, "evaluator": self.evaluator}
        return perplexity(self.model, self.tokenizer, self.corpus, **shared, **how)[name]

    def tokens(self, name, settings):
        """All documents are taken to be as long as the first."""
        asked = self.arguments
        number = asked.documents or self.corpus.number
        if number is None:
            return None
        with encoded(self.model, name, settings["options"]):
            protocol = create_protocol(asked.protocol, **asked.protocol_options)
            run = Run.of(self.model, protocol, asked.lengths, pass_tokens=asked.pass_tokens)
        first = next(stream(self.corpus, self.tokenizer, asked.bos, asked.max_tokens))
        return run.tokens(max(len(first), run.longest)) * -(-number // self.processes.count)

    def report(self, results):
        """The table, perplexity.csv and perplexity.png."""
        from hf_posenc.plotting import plot_perplexity

        with TemporaryDirectory() as scratch:
            print_table(results, Path(scratch))
        write_atomically(self.output / "perplexity.csv", to_csv(results))
        native = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        curves = {name: result.curve for name, result in results.items()}
        print(f"written to {self.output}: one JSON per encoding, perplexity.csv")
        with pictures():
            print(plot_perplexity(curves, self.output / "perplexity.png", heading(next(iter(results.values()))), native))


def find_keys(evaluator: Evaluator, texts: Texts, processes: Processes) -> None:
    """Have this process's documents read, with a bar."""
    with Bar(None, processes.main) as bar:
        bar.name("key tokens")
        texts.find_keys(evaluator, processes, bar.advance)


@dataclass
class Corpus:
    """The text that was asked for, to be read once for each encoding.

    Args:
        read: opens it.
        identity: tells it from other text, for the settings of a result.
        number: how many documents there are; None where that is not known.
    """

    read: Callable[[], Iterable[Text | Document]]
    identity: Any
    number: int | None

    def __iter__(self) -> Iterator[Text | Document]:
        return iter(self.read())


def open_corpus(arguments: PerplexityArguments, tokenizer: Any, length: int) -> Corpus:
    """Files, a dataset, or the built-in text cut into documents of `length` tokens."""
    if arguments.dataset:
        where = (arguments.dataset, arguments.dataset_config, arguments.split, arguments.text_column)
        return Corpus(lambda: dataset_texts(*where, streaming=arguments.streaming), [*where, file_identity(arguments.dataset)], None)
    if arguments.text:
        texts = [Text(name, content) for name, content in zip(arguments.text, read_texts(arguments.text), strict=True)]
        return Corpus(lambda: texts, [content_identity(text.content) for text in texts], len(texts))
    bos = adds_bos(tokenizer, arguments.bos)
    whole = encode(tokenizer, Text("pydoc_data.topics", embedded_corpus()), arguments.bos)
    documents = cut(whole, length, arguments.documents or 1, bos)
    return Corpus(lambda: documents, [document.sha256 for document in documents], len(documents))


def file_identity(path: str) -> str | None:
    """Of the content of a local file; None for anything else."""
    return content_identity(Path(path).read_bytes()) if Path(path).is_file() else None


def content_identity(content: str | bytes) -> str:
    """16 hex digits."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]
