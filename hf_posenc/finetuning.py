"""The fine-tuning recipe: a Hugging Face model with another positional encoding, trained with `Trainer`."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import hf_posenc

from .evaluation.cli import load_tokenizer, parse_option
from .evaluation.corpus import CorpusError, embedded_corpus, open_dataset, read_texts
from .evaluation.demo_model import resolve_model
from .evaluation.result import write_atomically
from .evaluation.token_nll import evaluating, input_device
from .patching import patch_of
from .training import LengthEvaluation, pack, perplexities, unpack

STOCK = "stock"
SETTINGS = "finetune.json"
DEFAULTS = {"output_dir": "runs/finetune", "eval_on_start": True, "logging_steps": 10, "report_to": "none", "label_names": ["labels"]}
"""Of transformers' TrainingArguments, where this recipe has another default."""


@dataclass
class ModelArguments:
    """The model, and what of it is trained."""

    model: str = field(default="demo", metadata={"help": "hub id, local path, or 'demo' (SmolLM2-135M-Instruct, no hub needed)"})
    dtype: str = field(default="float32", metadata={"help": "of the weights: float32, bfloat16, float16, or auto (as saved)"})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flex_attention, flash_attention_2"})
    lora_rank: int | None = field(default=None, metadata={"help": "train LoRA adapters of this rank through PEFT, not all weights"})
    lora_alpha: int | None = field(default=None, metadata={"help": "LoRA scale; default twice the rank"})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout"})
    lora_targets: list[str] = field(default_factory=list, metadata={"help": "modules that get an adapter; default all linear layers"})
    lora_also_train: list[str] = field(
        default_factory=list, metadata={"help": "modules trained in full beside LoRA, for example embed_tokens norm (LongLoRA)"}
    )


@dataclass
class EncodingArguments:
    """The positional encoding."""

    encoding: str = field(default=STOCK, metadata={"help": "a name from `hf-posenc list`; 'stock' leaves the model as loaded"})
    factor: float | None = field(default=None, metadata={"help": "context extension factor, for the encodings that take one"})
    target_length: int | None = field(default=None, metadata={"help": "context length to reach, for the encodings that take one"})
    layers: str | None = field(default=None, metadata={"help": "which layers: all, a slice as 3::4, or indices as 0,3,7"})
    option: list[str] = field(default_factory=list, metadata={"help": "more options as key=value: window=1024"})


@dataclass
class DataArguments:
    """The text."""

    text: list[str] = field(default_factory=list, metadata={"help": "text files, one document each; default the embedded corpus"})
    dataset: str | None = field(default=None, metadata={"help": "`datasets` hub id or local .json, .jsonl, .csv, .parquet file"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of the dataset"})
    split: str = field(default="train", metadata={"help": "split of the dataset"})
    text_column: str = field(default="text", metadata={"help": "column of the dataset that holds the text"})
    block_size: int = field(default=1024, metadata={"help": "tokens in a training sequence"})
    eval_tokens: int = field(default=16384, metadata={"help": "tokens held out at the end of the text, to evaluate on"})
    eval_lengths: list[int] = field(default_factory=list, metadata={"help": "context lengths to evaluate at; default the block size"})
    num_proc: int | None = field(default=None, metadata={"help": "processes that tokenize"})


@dataclass
class Arguments:
    """Everything that was asked for."""

    model: ModelArguments
    encoding: EncodingArguments
    data: DataArguments
    training: TrainingArguments


def main(argv: list[str] | None = None) -> int:
    """Run the recipe; returns the exit status. A mistake of the user is one line on stderr, without a traceback."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        trainer, evaluation = prepare(arguments)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    trainer.train(resume_from_checkpoint=last_checkpoint(arguments.training))
    return finish(trainer, evaluation, arguments)


def parse(argv: list[str]) -> Arguments:
    """Flags, those of TrainingArguments among them; before them, one YAML or JSON file with the same names, which they override."""
    groups = cast(Any, [ModelArguments, EncodingArguments, DataArguments, TrainingArguments])
    parser = HfArgumentParser(groups, prog="finetune", usage="finetune [SETTINGS.yaml] [--flag value ...]", description=__doc__)
    parser.set_defaults(**DEFAULTS)
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        parser.set_defaults(**read_settings(argv[0], known={action.dest for action in parser._actions}))
        argv = argv[1:]
    arguments = Arguments(*parser.parse_args_into_dataclasses(argv, look_for_args_file=False))
    arguments.data.eval_lengths = sorted(arguments.data.eval_lengths or [arguments.data.block_size])
    if "nll@" in (arguments.training.metric_for_best_model or ""):
        arguments.training.greater_is_better = False  # transformers takes every metric whose name does not end with "loss" for a score
    return arguments


def read_settings(path: str, known: set[str]) -> dict[str, Any]:
    """A YAML or JSON file of settings.

    Raises:
        ValueError: it is not a mapping, or has a name that no flag has.
    """
    settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings; write one `name: value` a line")
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"{path} has unknown settings: {', '.join(unknown)}")
    return settings


def prepare(arguments: Arguments) -> tuple[Trainer, LengthEvaluation]:
    """Everything that can go wrong by mistake happens here, before the first step: text, model, encoding, checkpoints."""
    if arguments.encoding.encoding != STOCK:
        hf_posenc.describe(arguments.encoding.encoding)
    check_settings(arguments)
    path = resolve_model(arguments.model.model)
    tokenizer = load_tokenizer(path)
    with arguments.training.main_process_first(desc="packing"):
        train, test = load_blocks(arguments.data, tokenizer)
    set_seed(arguments.training.seed)
    model = load_model(path, arguments)
    trainer = Trainer(
        model,
        arguments.training,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        data_collator=default_data_collator,
    )
    evaluation = LengthEvaluation(unpack(test)[: arguments.data.eval_tokens], arguments.data.eval_lengths).attach(trainer)
    if trainer.is_world_process_zero():
        describe_run(model, train)
        write_atomically(Path(arguments.training.output_dir or "") / SETTINGS, json.dumps(own_settings(arguments), indent=1))
    return trainer, evaluation


def own_settings(arguments: Arguments) -> dict[str, Any]:
    """What makes a run the same run, beside the arguments of `Trainer`."""
    return {**asdict(arguments.model), **asdict(arguments.encoding), **asdict(arguments.data), "num_proc": None}


def check_settings(arguments: Arguments) -> None:
    """Refuse to continue the checkpoints of another run."""
    folder = Path(arguments.training.output_dir or "")
    if not (folder / SETTINGS).exists() or last_checkpoint(arguments.training) is None:
        return
    before, now = json.loads((folder / SETTINGS).read_text()), own_settings(arguments)
    if changed := [f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in now if before.get(name) != now[name]]:
        raise ValueError(f"{folder} has checkpoints of another run ({'; '.join(changed)}); choose another --output_dir")


def last_checkpoint(training: TrainingArguments) -> str | None:
    """The checkpoint to go on from: the one asked for, or else the last one in the output folder."""
    if training.resume_from_checkpoint is not None:
        return training.resume_from_checkpoint
    folder = training.output_dir
    return get_last_checkpoint(folder) if folder and Path(folder).is_dir() else None


def load_blocks(data: DataArguments, tokenizer: Any) -> tuple[Any, Any]:
    """Blocks to train on, and held-out blocks from the end of the text.

    Raises:
        CorpusError: there is no text, or not enough of it.
    """
    if data.eval_tokens < max(data.eval_lengths):
        raise ValueError(f"eval_tokens={data.eval_tokens} is less than the longest evaluation of {max(data.eval_lengths)} tokens")
    blocks = pack(load_texts(data), tokenizer, data.block_size, data.num_proc)
    # One block more than the tokens fill, because the last one may be padded.
    held_out = math.ceil(data.eval_tokens / data.block_size) + 1
    if len(blocks) <= held_out:
        available = unpack(blocks).numel()
        needed = (held_out + 1) * data.block_size
        raise CorpusError(f"the text has {available:,} tokens; about {needed:,} are needed (block_size, eval_tokens held out)")
    train = blocks.select(range(len(blocks) - held_out))
    return train, blocks.select(range(len(train), len(blocks)))


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


def load_model(path: str, arguments: Arguments) -> Any:
    """The model with its new encoding, and with LoRA adapters where they were asked for."""
    chosen = {name: value for name in ("attn_implementation",) if (value := getattr(arguments.model, name))}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=arguments.model.dtype, **chosen)
    apply_encoding(model, arguments.encoding)
    check_positions(model, max(arguments.data.block_size, *arguments.data.eval_lengths))
    return model if arguments.model.lora_rank is None else add_lora(model, arguments.model)


def apply_encoding(model: Any, asked: EncodingArguments) -> None:
    """Patch the model, and see from what is live in it that this changed something."""
    if asked.encoding == STOCK:
        return
    options = dict(parse_option(option) for option in asked.option)
    options |= {name: value for name in ("factor", "target_length") if (value := getattr(asked, name)) is not None}
    before = hf_posenc.inspect(model).fingerprint
    hf_posenc.patch(model, asked.encoding, layers=cast(Any, parse_layers(asked.layers)), **options)
    if hf_posenc.inspect(model).fingerprint == before:
        raise ValueError(
            f"{asked.encoding!r} is live in the model already (fingerprint {before}): leave --encoding out to train it as it is"
        )


def check_positions(model: Any, length: int) -> None:
    """Raise ValueError where the model has no position for the last token of the longest input; later it would be a crash."""
    record = patch_of(model)
    for placement in record.placements:
        placement.encoding.check_positions(length - 1)
    known = record.backbone.config.max_position_embeddings
    if not record.placements and record.architecture.native_table(record.native) is not None and length > known:
        raise ValueError(
            f"the model has a table of {known} positions; {length} are asked for. Grow it: --encoding learned --option max_positions={length}"
        )


def parse_layers(layers: str | None) -> str | slice | list[int] | None:
    """`3::4` as a slice, `0,3,7` as a list, `all` and None as they are."""
    if layers is None or layers == "all":
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


def finish(trainer: Trainer, evaluation: LengthEvaluation, arguments: Arguments) -> int:
    """Save, load again, and compare; the exit status is 1 where the reloaded model is another one."""
    trainer.save_model()
    trainer.save_state()
    if not trainer.is_world_process_zero():
        return 0
    for (name, nats), perplexity in zip(evaluation.last.items(), perplexities(evaluation.last.values()), strict=True):
        print(f"{name.removeprefix('eval_nll@')} tokens: {nats:.4f} nats, perplexity {perplexity:.2f}")
    model = cast(Any, trainer.accelerator.unwrap_model(trainer.model))
    ids = evaluation.ids[None, : arguments.data.block_size]
    before = logits(model, ids)
    folder = whole_model(model, Path(arguments.training.output_dir or ""), trainer.processing_class)
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
