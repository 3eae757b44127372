"""The fine-tuning recipe: a Hugging Face model with another positional encoding, trained with `Trainer`."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import hf_posenc

from .command import exit_status, parse_option
from .command import parse as parse_command
from .evaluation.corpus import CorpusError, embedded_corpus, open_dataset, read_texts
from .evaluation.demo_model import resolve_model
from .evaluation.models import load_tokenizer
from .evaluation.result import write_atomically
from .evaluation.token_nll import evaluating, input_device
from .patching import patch_of
from .training import LengthEvaluation, pack, perplexities, unpack

STOCK = "stock"
SETTINGS = "finetune.json"
DEFAULTS: dict[str, Any] = {
    "output_dir": "runs/finetune",
    "eval_on_start": True,
    "logging_steps": 10,
    "report_to": "none",
    "label_names": ["labels"],
}
"""Of transformers' TrainingArguments, where this recipe has another default."""


@dataclass
class ModelArguments:
    """The model, its positional encoding, and what of it is trained."""

    model: str = field(default="demo", metadata={"help": "hub id, local path, or 'demo' (SmolLM2-135M-Instruct, no hub needed)"})
    dtype: str = field(default="float32", metadata={"help": "of the weights: float32, bfloat16, float16, or auto (as saved)"})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flex_attention, flash_attention_2"})
    encoding: str = field(default=STOCK, metadata={"help": "a name from `hf-posenc list`; 'stock' leaves the model as loaded"})
    factor: float | None = field(default=None, metadata={"help": "context extension factor, for the encodings that take one"})
    target_length: int | None = field(default=None, metadata={"help": "context length to reach, for the encodings that take one"})
    layers: str | None = field(default=None, metadata={"help": "which layers: all, a slice as 3::4, or indices as 0,3,7"})
    option: list[str] = field(default_factory=list, metadata={"help": "more options as key=value: window=1024"})
    lora_rank: int | None = field(default=None, metadata={"help": "train LoRA adapters of this rank through PEFT, not all weights"})
    lora_alpha: int | None = field(default=None, metadata={"help": "LoRA scale; default twice the rank"})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout"})
    lora_targets: list[str] = field(default_factory=list, metadata={"help": "modules that get an adapter; default all linear layers"})
    lora_also_train: list[str] = field(
        default_factory=list, metadata={"help": "modules trained in full beside LoRA, for example embed_tokens norm (LongLoRA)"}
    )


@dataclass
class DataArguments:
    """The text."""

    text: list[str] = field(default_factory=list, metadata={"help": "text files, one document each; default the embedded corpus"})
    dataset: str | None = field(default=None, metadata={"help": "`datasets` hub id or local .json, .jsonl, .csv, .parquet file"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of the dataset"})
    split: str = field(default="train", metadata={"help": "split of the dataset"})
    text_column: str = field(default="text", metadata={"help": "column of the dataset that holds the text"})
    block_size: int = field(default=1024, metadata={"help": "tokens in a training sequence"})
    eval_tokens: int | None = field(
        default=None, metadata={"help": "tokens held out at the end of the text, to evaluate on; default a twentieth, at most 16384"}
    )
    eval_lengths: list[int] = field(default_factory=list, metadata={"help": "context lengths to evaluate at; default the block size"})
    num_proc: int | None = field(default=None, metadata={"help": "processes that tokenize"})


def main(argv: list[str] | None = None) -> int:
    """Run the recipe; returns the exit status. Once training has begun, an error is no mistake of the command line and is shown in full."""
    prepared: list[tuple[Trainer, LengthEvaluation]] = []
    status = exit_status(lambda: prepared.append(prepare(*parse(sys.argv[1:] if argv is None else argv))))
    return status or train(*prepared[0])


def run(model_args: ModelArguments, data_args: DataArguments, settings: TrainingArguments) -> int:
    """Train, save, load again and compare; the exit status is 1 where the reloaded model is another one."""
    return train(*prepare(model_args, data_args, settings))


def parse(argv: list[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Flags, those of TrainingArguments among them; before them, one YAML or JSON file with the same names, which they override."""
    model_args, data_args, settings = parse_command([ModelArguments, DataArguments, TrainingArguments], "finetune", argv, DEFAULTS)
    data_args.eval_lengths = sorted(data_args.eval_lengths or [data_args.block_size])
    if "nll@" in (settings.metric_for_best_model or ""):
        settings.greater_is_better = False  # transformers takes every metric whose name does not end with "loss" for a score
    return model_args, data_args, settings


def prepare(model_args: ModelArguments, data_args: DataArguments, settings: TrainingArguments) -> tuple[Trainer, LengthEvaluation]:
    """Everything that can go wrong by mistake happens here, before the first step: text, model, encoding, checkpoints."""
    encoding_options(model_args)
    own = {**asdict(model_args), **asdict(data_args)}
    check_same_run(own, settings)
    path = resolve_model(model_args.model)
    tokenizer = load_tokenizer(path)
    with settings.main_process_first(desc="packing"):
        train_blocks, test_blocks = load_blocks(data_args, tokenizer)
    set_seed(settings.seed)
    model = load_model(path, model_args, longest=max(data_args.block_size, *data_args.eval_lengths))
    trainer = Trainer(
        model,
        settings,
        train_dataset=train_blocks,
        eval_dataset=test_blocks,
        processing_class=tokenizer,
        data_collator=default_data_collator,
    )
    if trainer.is_world_process_zero():
        describe_run(model, train_blocks)
        write_atomically(output(settings) / SETTINGS, json.dumps(own, indent=1))
    return trainer, LengthEvaluation(unpack(test_blocks), data_args.eval_lengths).attach(trainer)


def output(settings: TrainingArguments) -> Path:
    """The folder that everything goes to."""
    return Path(settings.output_dir or DEFAULTS["output_dir"])


def check_same_run(own: dict[str, Any], settings: TrainingArguments) -> None:
    """Refuse to go on from the checkpoints of a run that had another model, encoding or text."""
    file = output(settings) / SETTINGS
    if last_checkpoint(settings) is None or not file.exists():
        return
    before = json.loads(file.read_text())
    if changed := [f"{name} was {before.get(name)!r}, is {own[name]!r}" for name in own if before.get(name) != own[name]]:
        raise ValueError(f"{file.parent} has checkpoints of another run ({'; '.join(changed)}); choose another --output_dir")


def last_checkpoint(settings: TrainingArguments) -> str | None:
    """The checkpoint to go on from: the one asked for, or else the last one in the output folder."""
    if settings.resume_from_checkpoint is not None:
        return settings.resume_from_checkpoint
    return get_last_checkpoint(str(output(settings))) if output(settings).is_dir() else None


def load_blocks(data: DataArguments, tokenizer: Any) -> tuple[Any, Any]:
    """Blocks to train on, and held-out blocks from the end of the text.

    Raises:
        CorpusError: there is no text, or not enough of it.
    """
    blocks = pack(load_texts(data), tokenizer, data.block_size, data.num_proc)
    wanted = min(len(blocks) * data.block_size // 20, 16384) if data.eval_tokens is None else data.eval_tokens
    # One block more than the tokens fill, because the last one may be padded.
    kept = len(blocks) - math.ceil(wanted / data.block_size) - 1
    if kept < 1:
        available = unpack(blocks).numel()
        raise CorpusError(f"the text has {available:,} tokens: not enough for a block of {data.block_size:,} and {wanted:,} held out")
    test = blocks.select(range(kept, len(blocks)))
    held_out, longest = unpack(test).numel(), max(data.eval_lengths)
    if held_out < longest:
        raise CorpusError(
            f"only {held_out:,} tokens are held out for the test at {longest:,} tokens; raise --eval_tokens or bring more text"
        )
    return blocks.select(range(kept)), test


def load_texts(data: DataArguments) -> Any:
    """The documents, in a column "text"."""
    from datasets import Dataset, load_dataset

    if data.text and data.dataset:
        raise ValueError("--text and --dataset exclude each other")
    if data.text:
        read_texts(data.text)  # for its error messages; the rows below are cached on disk, and so is what is made from them
        return load_dataset("text", data_files=data.text, sample_by="document", split="train")
    if data.dataset is None:
        return Dataset.from_dict({"text": [embedded_corpus()]})
    rows = open_dataset(data.dataset, data.dataset_config, data.split)
    if data.text_column not in rows.column_names:
        raise CorpusError(f"{data.dataset} has no column {data.text_column!r}; it has: {', '.join(rows.column_names)}")
    rows = rows.select_columns([data.text_column])
    return rows if data.text_column == "text" else rows.rename_column(data.text_column, "text")


def load_model(path: str, asked: ModelArguments, longest: int) -> Any:
    """The model with its new encoding, which must reach `longest` tokens, and with LoRA adapters where they were asked for."""
    chosen = {"attn_implementation": asked.attn_implementation} if asked.attn_implementation else {}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=asked.dtype, **chosen)
    apply_encoding(model, asked)
    check_positions(model, longest)
    return model if asked.lora_rank is None else add_lora(model, asked)


def encoding_options(asked: ModelArguments) -> dict[str, Any]:
    """The keyword arguments of `patch`.

    Raises:
        ValueError: an unknown encoding, or options for the stock one.
    """
    options = dict(parse_option(option) for option in asked.option)
    options |= {name: value for name in ("factor", "target_length") if (value := getattr(asked, name)) is not None}
    if asked.layers is not None:
        options["layers"] = parse_layers(asked.layers)
    if asked.encoding != STOCK:
        hf_posenc.describe(asked.encoding)
    elif options:
        raise ValueError(f"encoding {STOCK!r} takes no options, got {', '.join(options)}")
    return options


def apply_encoding(model: Any, asked: ModelArguments) -> None:
    """Patch the model, and see from what is live in it that this changed something."""
    if asked.encoding == STOCK:
        return
    before = hf_posenc.inspect(model).fingerprint
    hf_posenc.patch(model, asked.encoding, **encoding_options(asked))
    if hf_posenc.inspect(model).fingerprint == before:
        raise ValueError(
            f"{asked.encoding!r} is live in the model already (fingerprint {before}): leave --encoding out to train it as it is"
        )


def check_positions(model: Any, length: int) -> None:
    """Raise ValueError where the model has no position for the last token of the longest input; later it would be a crash."""
    record = patch_of(model)
    for placement in record.placements:
        placement.encoding.check_positions(length - 1)
    known = cast(Any, record.backbone).config.max_position_embeddings
    has_table = record.architecture.native_table(record.native) is not None
    if has_table and not record.placements and length > known:
        grow = f"--encoding learned --option max_positions={length}"
        raise ValueError(f"the model has a table of {known} positions and is to see {length} tokens; grow the table with {grow}")


def parse_layers(layers: str) -> str | slice | list[int]:
    """`3::4` as a slice, `0,3,7` as a list, `all` as it is."""
    if layers == "all":
        return layers
    try:
        if ":" in layers:
            return slice(*(int(bound) if bound else None for bound in layers.split(":")))
        return [int(index) for index in layers.split(",")]
    except (ValueError, TypeError):
        raise ValueError(f"--layers {layers!r} is neither 'all', nor a slice such as 3::4, nor indices such as 0,3,7") from None


def add_lora(model: Any, asked: ModelArguments) -> Any:
    """LoRA adapters on the linear layers; the encoding's own parameters are trained and saved in full."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ImportError("--lora_rank needs PEFT: pip install 'hf_posenc[peft]'") from None
    config = LoraConfig(
        r=asked.lora_rank or 0,
        lora_alpha=asked.lora_alpha or 2 * (asked.lora_rank or 0),
        lora_dropout=asked.lora_dropout,
        target_modules=asked.lora_targets or "all-linear",
        modules_to_save=[*learned_modules(model), *asked.lora_also_train] or None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def learned_modules(model: Any) -> list[str]:
    """Names, on the backbone, of the modules that hold the learned parameters of the encodings."""
    record = patch_of(model)
    names = [record.architecture.slot if p.in_table else p.attribute for p in record.placements]
    return [name for name in names if list(getattr(record.backbone, name).parameters())]


def describe_run(model: Any, train: Any) -> None:
    """What is live and what will be trained."""
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    print(hf_posenc.inspect(model))
    print(f"parameters: {sum(p.numel() for p in parameters):,}, of which {trainable:,} are trained")
    print(f"text: {len(train):,} blocks of {len(train[0]['input_ids']):,} tokens")


def train(trainer: Trainer, evaluation: LengthEvaluation) -> int:
    """Train, save, load again and compare; the exit status is 1 where the reloaded model is another one."""
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args))
    trainer.save_model()
    trainer.save_state()
    if not trainer.is_world_process_zero():
        return 0
    for (name, nats), perplexity in zip(evaluation.last.items(), perplexities(evaluation.last.values()), strict=True):
        print(f"{name}: {nats:.4f} nats, perplexity {perplexity:.2f}")
    return reload(trainer, evaluation.ids[None, : evaluation.lengths[0]])


def reload(trainer: Trainer, ids: torch.Tensor) -> int:
    """Load what was saved, and compare its logits on ids [1,L] with those of the model in memory."""
    # Without the wrapper that computes in the precision of training: the reloaded model has none.
    model = cast(Any, trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False))
    before = logits(model, ids)
    folder = whole_model(model, output(trainer.args), trainer.processing_class)
    after = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype), ids)
    difference, scale = (after - before).abs().max().item(), before.abs().max().item()
    print(f"saved in {folder}; loaded again, the largest difference of a logit is {difference:.1e} (largest logit {scale:.1f})")
    # Merging LoRA rounds; anything else is exact.
    return int(difference > scale * (1e-3 if model.dtype == torch.float32 else 5e-2))


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [1,L,V] on the CPU."""
    with evaluating(model):
        return model(input_ids=ids.to(input_device(model))).logits.float().cpu()


def whole_model(model: Any, folder: Path, tokenizer: Any) -> Path:
    """Where the complete model lies. LoRA is merged for that: an adapter alone does not carry the encoding of its base."""
    if not hasattr(model, "merge_and_unload"):
        return folder
    model.merge_and_unload().save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    return folder / "merged"
