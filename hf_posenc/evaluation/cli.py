"""The perplexity recipe: one loaded model, several encodings, the curve of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_posenc

from ..command import exit_status, listed, parse, parse_option
from .corpus import Document, Text, adds_bos, cut, dataset_texts, embedded_corpus, encode, read_texts
from .demo_model import resolve_model
from .perplexity import check_lengths, inspect_model, is_length_dependent, perplexity, select, tokens_to_run
from .report import heading, print_table, progress_bar, to_csv
from .result import Result, write_atomically

STOCK = "stock"


@dataclass
class PerplexityArguments:
    """Perplexity against context length for several positional encodings of one model."""

    model: str = field(default="demo", metadata={"help": "hub id, local path, or 'demo' (SmolLM2-135M-Instruct, no hub needed)"})
    encoding: list[str] = field(
        default_factory=lambda: [STOCK], metadata={"help": "names from `hf-posenc list`; 'stock' is the model as loaded"}
    )
    factor: float | None = field(default=None, metadata={"help": "context extension factor, for the encodings that take one"})
    target_length: int | None = field(default=None, metadata={"help": "context length to reach, for the encodings that take one"})
    option: list[str] = field(
        default_factory=list, metadata={"help": "more options as key=value, each given to the encodings that take it: window=1024"}
    )
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
    dtype: str = field(default="auto", metadata={"help": "float32, bfloat16, float16, or auto (as saved)"})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flex_attention, flash_attention_2"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, cuda:1, mps, or auto"})
    chunk: int = field(default=1024, metadata={"help": "tokens per chunk of output layer and loss"})
    output_dir: str = field(default="runs/perplexity", metadata={"help": "where the JSON, CSV and PNG files go"})
    overwrite: bool = field(default=False, metadata={"help": "measure again what is already there"})

    def __post_init__(self) -> None:
        listed(self, "encoding", "option", "lengths", "text")


def main(argv: list[str] | None = None) -> int:
    """Run the recipe; returns the exit status."""
    return exit_status(lambda: run(parse(PerplexityArguments, "perplexity", argv)))


def run(arguments: PerplexityArguments) -> list[Result]:
    """Measure every encoding, skipping those already on disk with the same settings, and compare them."""
    plan = plan_options(arguments)
    lengths = check_lengths(arguments.lengths)
    path = resolve_model(arguments.model)
    tokenizer = load_tokenizer(path)
    documents = load_documents(arguments, tokenizer, lengths[-1])
    select(documents, lengths[-1])  # too little text is an error now, not after the model has been loaded
    model = load_model(path, arguments)
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


def plan_options(arguments: PerplexityArguments) -> dict[str, dict[str, Any]]:
    """The options of each encoding: of those given, the ones it takes. One that none of them takes is an error."""
    given = dict(parse_option(option) for option in arguments.option)
    given |= {name: value for name in ("factor", "target_length") if (value := getattr(arguments, name)) is not None}
    takes: dict[str, Any] = {name: () if name == STOCK else hf_posenc.describe(name).options for name in arguments.encoding}
    for option in given:
        if not any(option in options for options in takes.values()):
            listed = "; ".join(f"{name}: {', '.join(options) or 'none'}" for name, options in takes.items())
            raise ValueError(f"none of the encodings takes the option {option!r}; options are: {listed}")
    return {name: {option: value for option, value in given.items() if option in options} for name, options in takes.items()}


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


def load_tokenizer(path: str) -> Any:
    """The model's tokenizer; a name that leads nowhere comes to light here, and the message says which."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load the tokenizer of {path!r}: {error}") from None


def load_model(path: str, arguments: PerplexityArguments) -> Any:
    """The model, in eval mode on the device that was asked for."""
    chosen = {} if arguments.attn_implementation is None else {"attn_implementation": arguments.attn_implementation}
    device = arguments.device
    if device == "auto":
        device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(path, dtype=arguments.dtype, **chosen).eval().to(device)


def check_live(model: Any, plan: dict[str, dict[str, Any]]) -> dict[str, str | None]:
    """Patch once with every encoding before anything is measured, and return what is live then, as fingerprints.

    A mistake in the last of seven encodings is found at once, and so is a patch that changes nothing.
    """
    stock, _ = inspect_model(model)
    found = {}
    for name, options in plan.items():
        with encoded(model, name, options):
            found[name], _ = inspect_model(model)
        if name != STOCK and found[name] == stock:
            raise ValueError(f"{name}: the patched model has the same live encoding as the stock model (fingerprint {stock})")
    return found


@contextmanager
def encoded(model: Any, name: str, options: dict[str, Any]) -> Iterator[None]:
    """The model with this encoding, for the length of the block."""
    with nullcontext() if name == STOCK else hf_posenc.patched(model, name, **options):
        yield


def weights_digest(model: Any) -> str:
    """Identifies the weights by 64 values of each tensor, so that a retrained model in the same folder is measured again."""
    state = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 64)].float().cpu()
        state.update(name.encode() + sample.numpy().tobytes())
    return state.hexdigest()[:16]


def digest(settings: dict[str, Any]) -> str:
    """Identifies settings (8 hex digits)."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


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
