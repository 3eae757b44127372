"""Train short, test long: the same small model with several positional encodings, from the same start on the same data."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

import hf_posenc

from .command import exit_status, listed, parse, parse_option
from .evaluation.corpus import CorpusError, embedded_corpus, read_texts
from .evaluation.measure import versions
from .evaluation.result import write_atomically
from .plotting import plot_perplexity
from .training import perplexities, window_nll

DEFAULT_OPTIONS = {"sinusoidal": {"scale": 0.02}}
"""The small models start with embeddings of standard deviation 0.02; sines of amplitude 1 would drown them."""


@dataclass
class CompareArguments:
    """Train short, test long: one small model, several positional encodings."""

    encodings: list[str] = field(
        default_factory=lambda: ["learned", "sinusoidal", "rope", "nope", "alibi", "t5", "kerple"],
        metadata={"help": "names from `hf-posenc list`"},
    )
    model_type: Literal["gpt2", "llama"] = field(default="gpt2", metadata={"help": "layout of the small model"})
    option: list[str] = field(
        default_factory=list, metadata={"help": "options as encoding.key=value: sinusoidal.scale=0.1 kerple.kernel=power"}
    )
    text: list[str] = field(default_factory=list, metadata={"help": "text files to train on; default the embedded corpus"})
    train_length: int = field(default=128, metadata={"help": "context length in training, in bytes of text"})
    eval_multiples: list[int] = field(default_factory=lambda: [1, 2, 4, 8], metadata={"help": "test at these multiples of it"})
    eval_tokens: int = field(default=16384, metadata={"help": "held-out bytes of text to test on"})
    steps: int = field(default=350, metadata={"help": "optimizer steps"})
    batch_size: int = field(default=16, metadata={"help": "sequences in a step"})
    learning_rate: float = field(default=3e-3, metadata={"help": "peak, cosine schedule"})
    hidden_size: int = field(default=128, metadata={"help": "width"})
    layers: int = field(default=2, metadata={"help": "layers"})
    heads: int = field(default=4, metadata={"help": "attention heads"})
    seed: int = field(default=0, metadata={"help": "of initial weights and data order"})
    output_dir: str = field(default="runs/compare", metadata={"help": "where the JSON, CSV and PNG files go"})
    overwrite: bool = field(default=False, metadata={"help": "train again what is already there"})

    def __post_init__(self) -> None:
        listed(self, "encodings", "option", "text", "eval_multiples")
        for name in ("train_length", "eval_tokens", "steps", "batch_size", "hidden_size", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.eval_multiples or min(self.eval_multiples) < 1:
            raise ValueError(f"eval_multiples must be whole numbers of at least 1, got {self.eval_multiples}")

    @property
    def lengths(self) -> list[int]:
        return [self.train_length * m for m in sorted(self.eval_multiples)]


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    return exit_status(lambda: run(*parse([CompareArguments], "compare", argv)))


def run(arguments: CompareArguments) -> list[dict[str, Any]]:
    """Train and test every encoding that is not on disk yet, then print, write and plot all of them."""
    options = read_options(arguments)
    train, test = corpus(arguments)
    for name in arguments.encodings:  # a mistake in the last name comes to light before the first is trained
        build(name, options[name], arguments)
    folder = Path(arguments.output_dir)
    print(f"{len(arguments.encodings)} encodings, {arguments.steps} steps of {arguments.batch_size} x {arguments.train_length} tokens each")
    results = []
    with progress_bar() as progress:
        bar = progress.add_task("", total=len(arguments.encodings) * arguments.steps)
        for name in arguments.encodings:
            progress.update(bar, description=name)
            results.append(one_run(name, options[name], arguments, train, test, folder, lambda: progress.advance(bar)))
            progress.update(bar, completed=len(results) * arguments.steps)
            reached = ", ".join(f"{value:.2f} at {length:,}" for length, value in curve(results[-1]).items())
            progress.console.print(f"{name}: perplexity {reached}", highlight=False)
    report(results, arguments, folder)
    return results


def read_options(arguments: CompareArguments) -> dict[str, dict[str, Any]]:
    """`encoding.key=value` as options of each encoding; values are JSON, or else strings."""
    options: dict[str, dict[str, Any]] = {name: dict(DEFAULT_OPTIONS.get(name, {})) for name in arguments.encodings}
    for given in arguments.option:
        name, dot, option = given.partition(".")
        if not (dot and "=" in option and name in options):
            raise ValueError(f"--option {given!r} is not encoding.key=value with one of the encodings {', '.join(options)}")
        key, value = parse_option(option)
        options[name][key] = value
    return options


def corpus(arguments: CompareArguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes to train on, and a held-out tail of them to test on: [T] int64 each."""
    texts = read_texts(arguments.text) if arguments.text else [embedded_corpus()]
    ids = torch.frombuffer(bytearray("\n\n".join(texts).encode()), dtype=torch.uint8).long()
    needed = arguments.eval_tokens + arguments.train_length
    if len(ids) < needed:
        raise CorpusError(f"the text has {len(ids):,} bytes; {needed:,} are needed (eval_tokens + train_length)")
    if arguments.eval_tokens < max(arguments.lengths):
        raise ValueError(f"eval_tokens={arguments.eval_tokens} is less than the longest test of {max(arguments.lengths)} tokens")
    return ids[: -arguments.eval_tokens], ids[-arguments.eval_tokens :]


def build(name: str, options: dict[str, Any], arguments: CompareArguments) -> Any:
    """The small model with the encoding; the same weights for every encoding but its own."""
    torch.manual_seed(arguments.seed)
    config = AutoConfig.for_model(
        arguments.model_type,
        vocab_size=256,
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        max_position_embeddings=arguments.train_length,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
        **({} if arguments.model_type == "gpt2" else {"intermediate_size": 4 * arguments.hidden_size}),
    )
    for dropout in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    return hf_posenc.patch(AutoModelForCausalLM.from_config(config), name, **options)


def one_run(
    name: str, options: dict[str, Any], arguments: CompareArguments, train: torch.Tensor, test: torch.Tensor, folder: Path, tick
) -> dict[str, Any]:
    """Train and test one encoding, or read what an earlier call with the same settings found."""
    shared = {k: v for k, v in asdict(arguments).items() if k not in ("encodings", "option", "output_dir", "overwrite")}
    settings = {**shared, "encoding": name, "options": options, "data": hashlib.sha256(train.numpy().tobytes()).hexdigest()[:16]}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    file = folder / f"{name}-{digest}.json"
    if file.exists() and not arguments.overwrite:
        return json.loads(file.read_text())
    model = build(name, options, arguments)
    start = time.perf_counter()
    losses = fit(model, train, arguments, tick)
    trained = time.perf_counter()
    nats = {length: test_at(model, test, length) for length in arguments.lengths}
    found = {
        "settings": settings,
        "protocol": "disjoint",
        "parameters": sum(p.numel() for p in model.parameters()),
        "fingerprint": hf_posenc.inspect(model).fingerprint,
        "versions": versions(),
        "train_loss": losses,
        "nats": {str(length): value for length, value in nats.items()},
        "train_seconds": trained - start,
        "test_seconds": time.perf_counter() - trained,
    }
    write_atomically(file, json.dumps(found, indent=1))
    return found


class Ticker(TrainerCallback):
    """Moves a progress bar, and keeps the losses."""

    def __init__(self, tick):
        self.tick = tick
        self.losses: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.tick()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


def fit(model: Any, train: torch.Tensor, arguments: CompareArguments, tick) -> list[float]:
    """Train with `Trainer`; returns the mean losses, in nats, of every 20 steps.

    Raises:
        FloatingPointError: the loss is no longer a number.
    """
    length = arguments.train_length
    blocks = train[: len(train) // length * length].view(-1, length).tolist()
    ticker = Ticker(tick)
    settings = TrainingArguments(
        output_dir=str(Path(arguments.output_dir) / "trainer"),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, arguments.steps // 20),
        weight_decay=0.1,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=arguments.seed,
    )
    trainer = Trainer(model, settings, train_dataset=Dataset.from_dict({"input_ids": blocks, "labels": blocks}), callbacks=[ticker])
    trainer.pop_callback(_printer())
    trainer.train()
    if not all(map(math.isfinite, ticker.losses)):
        raise FloatingPointError(f"the training loss is not finite: {ticker.losses}; try a lower --learning_rate")
    return ticker.losses


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def test_at(model: Any, test: torch.Tensor, length: int) -> float | None:
    """nats per byte at a context length, None where the encoding is not defined there."""
    try:
        return window_nll(model, test, length)[0]
    except ValueError as error:
        if isinstance(error, CorpusError):
            raise
        return None


test_at.__test__ = False  # type: ignore[attr-defined]


def progress_bar() -> Progress:
    """Over all steps of all encodings, with the time left."""
    columns = (TextColumn("{task.description:>12}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn())
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn())


def report(results: list[dict[str, Any]], arguments: CompareArguments, folder: Path) -> None:
    """Print the table, and write compare.csv and compare.png."""
    names = [r["settings"]["encoding"] for r in results]
    curves = {name: curve(r) for name, r in zip(names, results, strict=True)}
    table = Table("encoding", *(f"{n:,}" for n in arguments.lengths), "parameters", "train s", title="perplexity per byte", box=None)
    lines = [",".join(["encoding", *map(str, arguments.lengths)])]
    for name, result in zip(names, results, strict=True):
        values = [curves[name].get(n) for n in arguments.lengths]
        shown = ["-" if v is None else f"{v:.2f}" if v < 1000 else f"{v:.1e}" for v in values]
        table.add_row(name, *shown, f"{result['parameters']:,}", f"{result['train_seconds']:.0f}")
        lines.append(",".join([name, *("" if v is None else f"{v:.6g}" for v in values)]))
    Console().print(table)
    if any(len(c) < len(arguments.lengths) for c in curves.values()):
        print("-: the encoding is not defined at that length")
    write_atomically(folder / "compare.csv", "\n".join(lines) + "\n")
    title = f"{arguments.model_type}, {arguments.layers} layers, trained {arguments.steps} steps at {arguments.train_length} bytes"
    picture = plot_perplexity(curves, folder / "compare.png", title=title, train_length=arguments.train_length)
    print(f"one JSON per run, compare.csv and {picture.name} in {folder}")


def curve(result: dict[str, Any]) -> dict[int, float]:
    """Perplexity per byte by length."""
    known = {int(length): value for length, value in result["nats"].items() if value is not None}
    return dict(zip(known, perplexities(known.values()), strict=True))
