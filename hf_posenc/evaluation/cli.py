"""The perplexity recipe: one loaded model, several encodings, the curve of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..command import exit_status, listed, parse
from .corpus import Document, Text, adds_bos, cut, dataset_texts, embedded_corpus, encode, read_texts
from .models import ModelArguments, check_live, check_tokenizer, digest, encoded, load_model, load_tokenizer, plan_options, weights_digest
from .perplexity import check_lengths, is_length_dependent, perplexity, select, tokens_to_run
from .report import heading, print_table, progress_bar, to_csv
from .result import Result, write_atomically


@dataclass
class PerplexityArguments(ModelArguments):
    """Perplexity against context length for several positional encodings of one model."""

    lengths: list[int] = field(default_factory=lambda: [1024, 2048, 4096], metadata={"help": "context lengths in tokens"})
    text: list[str] = field(default_factory=list, metadata={"help": "text files, one document each"})
    dataset: str | None = field(default=None, metadata={"help": "`datasets` hub id or local .json, .jsonl, .csv, .parquet file"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of the dataset"})
    split: str = field(default="test", metadata={"help": "split of the dataset"})
    text_column: str = field(default="text", metadata={"help": "column of the dataset that holds the text"})
    documents: int | None = field(
        default=None,
        metadata={"help": "how many documents of the longest length; without --text and --dataset, built-in text is cut into as many (1)"},
    )
    bos: Literal["auto", "always", "never"] = field(
        default="auto", metadata={"help": "BOS before each document; auto: as the tokenizer does"}
    )
    chunk: int = field(default=1024, metadata={"help": "tokens per chunk of output layer and loss"})
    output_dir: str = field(default="runs/perplexity", metadata={"help": "where the JSON, CSV and PNG files go"})
    overwrite: bool = field(default=False, metadata={"help": "measure again what is already there"})

    def __post_init__(self) -> None:
        super().__post_init__()
        listed(self, "lengths", "text")


def main(argv: list[str] | None = None) -> int:
    """Run the recipe; returns the exit status."""
    return exit_status(lambda: run(*parse([PerplexityArguments], "perplexity", argv)))


def run(arguments: PerplexityArguments) -> list[Result]:
    """Measure every encoding, skipping those already on disk with the same settings, and compare them."""
    plan = plan_options(arguments)
    lengths = check_lengths(arguments.lengths)
    path = arguments.path
    tokenizer = load_tokenizer(path)
    documents = load_documents(arguments, tokenizer, lengths[-1])
    select(documents, lengths[-1])  # too little text is an error now, not after the model has been loaded
    model = load_model(path, arguments)
    check_tokenizer(tokenizer, model)
    fingerprints = check_live(model, plan)

    given = {name: getattr(arguments, name) for name in ("model", "bos", "dtype", "attn_implementation")}
    shared = {**given, "lengths": lengths, "documents": [each.sha256 for each in documents], "weights": weights_digest(model)}
    results = {}
    for name, options in plan.items():
        settings = {**shared, "encoding": name, "options": options, "fingerprint": fingerprints[name]}
        file = Path(arguments.output_dir) / f"{name}-{digest(settings)}.json"
        if file.exists() and not arguments.overwrite:
            print(f"{name}: measured before with the same settings, taken from {file} (--overwrite measures again)")
            results[name] = Result.load(file)
        else:
            results[name] = measure(model, tokenizer, documents, settings, arguments)
            results[name].save(file)
    report(results, Path(arguments.output_dir), model)
    return list(results.values())


def load_documents(arguments: PerplexityArguments, tokenizer: Any, length: int) -> list[Document]:
    """The tokenized text that was asked for: files, a dataset, or the built-in text cut into documents of `length` tokens."""
    if arguments.text and arguments.dataset:
        raise ValueError("--text and --dataset exclude each other")
    bos = arguments.bos
    if not arguments.text and not arguments.dataset:
        whole = encode(tokenizer, Text("pydoc_data.topics", embedded_corpus()), bos)
        return cut(whole, length, arguments.documents or 1, adds_bos(tokenizer, bos))
    if arguments.dataset:
        texts = dataset_texts(arguments.dataset, arguments.dataset_config, arguments.split, arguments.text_column)
    else:
        texts = map(Text, arguments.text, read_texts(arguments.text))
    return list(until_enough((encode(tokenizer, text, bos) for text in texts), length, arguments.documents))


def until_enough(documents: Iterable[Document], length: int, count: int | None) -> Iterator[Document]:
    """Documents up to the one that is the `count`th with `length` tokens; the shorter ones among them will be reported as skipped."""
    for document in documents:
        yield document
        if count is not None and len(document) >= length:
            count -= 1
            if count == 0:
                return


def measure(model: Any, tokenizer: Any, documents: list[Document], settings: dict[str, Any], arguments: PerplexityArguments) -> Result:
    """One run with a progress bar."""
    name, options, lengths = settings["encoding"], settings["options"], settings["lengths"]
    used, _ = select(documents, lengths[-1])
    with encoded(model, name, options):
        total = tokens_to_run(used, lengths, one_forward=not is_length_dependent(model))
        with progress_bar(name, total) as advance:
            recorded = {"encoding": name, "options": options, "settings": settings}
            how = {"tokenizer": tokenizer, "bos": arguments.bos, "chunk": arguments.chunk, "progress": advance}
            return perplexity(model, documents, lengths, **how, **recorded)


def report(results: dict[str, Result], output: Path, model: Any) -> None:
    """Print the comparison; write it as perplexity.csv and perplexity.png."""
    from hf_posenc.plotting import plot_perplexity

    print_table(results)
    write_atomically(output / "perplexity.csv", to_csv(results))
    native = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    curves = {name: result.curve for name, result in results.items()}
    plot_perplexity(curves, output / "perplexity.png", title=heading(next(iter(results.values()))), train_length=native)
    print(f"written to {output}: one JSON per encoding, perplexity.csv, perplexity.png")
