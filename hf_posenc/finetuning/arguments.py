"""The settings of a fine-tuning run."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, cast

import torch
from transformers import TrainingArguments

import hf_posenc

from ..command import parse_option
from ..compat import CHECKPOINTING
from ..encodings.options import FARTHEST, count, number, positive
from ..evaluation.corpus import TextArguments
from ..evaluation.models import DTYPES
from ..flags import Foreign, at_least
from ..flags import parse as parse_flags
from ..training import Anneal, LongCE, PositionScheme, Stages, create_scheme, describe_scheme, list_schemes
from ..variants import FACTOR, STOCK, name_of, own_options, parse_layers, told

N = TypeVar("N", int, float)


def number_of_steps(flag: str, value: int) -> None:
    """Raise ValueError for a run without a step."""
    if value != -1:
        count(f"{flag} (-1 for --num_train_epochs)", value)


DESCRIPTION = "Fine-tune a model with another positional encoding, through Trainer."
DEFAULTS: dict[str, Any] = {
    "output_dir": "runs/finetune",
    "eval_on_start": True,
    "logging_steps": 10,
    "logging_nan_inf_filter": False,
    "report_to": "none",
    "label_names": ["labels"],
}
"""Of transformers' TrainingArguments, where this recipe has another default."""
TRAINING = Foreign(
    "Training (of transformers' TrainingArguments)",
    shown=(
        *("output_dir", "max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay"),
        *("per_device_train_batch_size", "gradient_accumulation_steps", CHECKPOINTING, "bf16", "seed"),
        *("eval_strategy", "eval_steps", "save_steps", "save_total_limit", "resume_from_checkpoint", "logging_steps", "report_to"),
    ),
    renamed={"activation_checkpointing": CHECKPOINTING},
    checks={
        "max_steps": number_of_steps,
        **dict.fromkeys(("num_train_epochs", "logging_steps", "save_steps", "eval_steps"), partial(positive, at_most=FARTHEST)),
        **dict.fromkeys(("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm"), partial(number, at_least=0)),
        **dict.fromkeys(
            ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "save_total_limit"), at_least(1)
        ),
        **dict.fromkeys(("seed", "data_seed", "dataloader_num_workers"), at_least(0)),
    },
)
PLAIN, LONGCE = "ce", "longce"
"""Losses."""
FREE = ("loss_chunk", "num_proc", "estimate_only", "expect_processes", "report")
"""Settings that make no difference to the trained model."""


@dataclass
class ModelArguments:
    """The model."""

    model: str = field(default="demo", metadata={"help": "hub id, local path, or 'demo' (SmolLM2-135M-Instruct, no hub needed)"})
    dtype: str = field(default="float32", metadata={"help": "of the weights; auto: as saved", "choices": DTYPES})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flex_attention, flash_attention_2"})


@dataclass
class EncodingArguments:
    """The positional encoding."""

    encoding: str = field(
        default=STOCK,
        metadata={
            "help": "a name from `hf-posenc list` or `hf-posenc mixes`, with options as yarn:factor=4; rope+nope:layers=3::4 "
            "is a mix by layer; 'stock' leaves the model as loaded"
        },
    )
    factor: Annotated[float | None, FACTOR] = field(
        default=None, metadata={"help": "context extension factor, for the encodings that take one"}
    )
    target_length: Annotated[int | None, at_least(1)] = field(
        default=None, metadata={"help": "context length to reach in tokens, for the encodings that take one"}
    )
    layers: str | None = field(default=None, metadata={"help": "which layers: all, a slice as 3::4, or indices as 0,3,7"})
    option: list[str] = field(default_factory=list, metadata={"help": "more options as key=value: window=1024"})


@dataclass
class DataArguments(TextArguments):
    """Blocks of the text."""

    mix: list[str] = field(
        default_factory=list,
        metadata={
            "help": "several sources instead of --text or --dataset, with their shares of the blocks: books.jsonl@0.5 code.jsonl@0.5; "
            "books.jsonl:min_length=65536@0.5 has a --min_length of its own"
        },
    )
    min_length: Annotated[int, at_least(1)] = field(
        default=1,
        metadata={"help": "leave out shorter documents, and what is left of one for a next block when it is shorter, in tokens (ProLong)"},
    )
    replay: list[str] = field(
        default_factory=list,
        metadata={"help": "short texts to train on beside the long ones, packed whatever their length: as --mix, or one file or dataset"},
    )
    replay_share: Annotated[float | None, partial(number, at_least=0, at_most=1)] = field(
        default=None, metadata={"help": "share of the blocks that --replay gets: 0.4 in ProLong"}
    )
    block_size: Annotated[int, at_least(2)] = field(default=1024, metadata={"help": "tokens in a training sequence"})
    boundaries: str | None = field(
        default=None,
        metadata={
            "help": "respect: no token sees another document of its block; cross: blocks run across documents; default respect, "
            "but cross with a --position_scheme that reaches for a longer text",
            "choices": ["respect", "cross"],
        },
    )
    num_proc: Annotated[int | None, at_least(1)] = field(default=None, metadata={"help": "processes that tokenize"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mix and (self.text or self.dataset):
            raise ValueError("--mix says where the text comes from: leave --text and --dataset out")


class Source(NamedTuple):
    """Where blocks come from, and how many.

    Args:
        path: a file or dataset; None for what --text and --dataset say.
        share: of all blocks.
        min_length, max_length: tokens in its documents.
        replayed: short texts beside the long ones.
    """

    path: str | None
    share: float
    min_length: int = 1
    max_length: int | None = None
    replayed: bool = False

    def __str__(self) -> str:
        longest = "" if self.max_length is None else f" to {self.max_length:,}"
        lengths = f" from {self.min_length:,}{longest} tokens" if self.min_length > 1 or longest else ""
        return f"{self.path or 'the text'}{lengths}"


@dataclass
class CourseArguments:
    """The training scheme."""

    lora_rank: Annotated[int | None, at_least(1)] = field(
        default=None, metadata={"help": "train LoRA adapters of this rank through PEFT, not all weights"}
    )
    lora_alpha: Annotated[int | None, at_least(1)] = field(default=None, metadata={"help": "LoRA scale; default twice the rank"})
    lora_dropout: Annotated[float, partial(number, at_least=0, at_most=1)] = field(default=0.0, metadata={"help": "LoRA dropout"})
    lora_targets: list[str] = field(default_factory=list, metadata={"help": "modules that get an adapter; default all linear layers"})
    lora_also_train: list[str] = field(
        default_factory=list, metadata={"help": "modules trained in full beside LoRA, for example embed_tokens norm (LongLoRA)"}
    )
    position_scheme: str | None = field(
        default=None, metadata={"help": f"train at other positions than 0, 1, 2 ...: {', '.join(list_schemes())}"}
    )
    position_target: Annotated[int | None, at_least(2)] = field(
        default=None, metadata={"help": "length in tokens to train for, for the schemes that reach for one; default --target_length"}
    )
    position_option: list[str] = field(default_factory=list, metadata={"help": "more options of the scheme as key=value: chunks=3"})
    anneal: str | None = field(default=None, metadata={"help": "move an option of the encoding from start to end: factor=1:4"})
    anneal_steps: Annotated[int | None, at_least(1)] = field(default=None, metadata={"help": "steps that --anneal takes; default all"})
    anneal_shape: str = field(default="linear", metadata={"help": "way of --anneal", "choices": ["linear", "geometric"]})
    anneal_every: Annotated[int, at_least(1)] = field(default=1, metadata={"help": "steps between two values of --anneal"})
    option_schedule: list[str] = field(
        default_factory=list,
        metadata={"help": "stages of an option of the encoding, by name and as step=value: theta 0=1000000 1000=5000000"},
    )
    length_schedule: list[str] = field(
        default_factory=list, metadata={"help": "lengths that blocks are cut into, as step=length: 0=256 100=512 200=1024"}
    )
    loss: str = field(
        default=PLAIN,
        metadata={
            "help": f"{PLAIN}, or {LONGCE}: what a long context helps to predict counts more, with options as "
            f"{LONGCE}:gamma=5,short=4096,stride=1024"
        },
    )
    loss_chunk: Annotated[int, at_least(0)] = field(
        default=1024, metadata={"help": "tokens whose logits exist at a time; 0 computes all logits at once, as stock"}
    )
    estimate_only: bool = field(default=False, metadata={"help": "stop after the estimate of time and memory, before the first step"})
    expect_processes: Annotated[int | None, at_least(1)] = field(
        default=None, metadata={"help": "fail where another number of processes runs"}
    )


@dataclass
class EvaluationArguments:
    """Evaluation, while training and after it."""

    eval_lengths: Annotated[list[int], at_least(2)] = field(
        default_factory=list, metadata={"help": "context lengths in tokens to evaluate at; default the block size"}
    )
    eval_tokens: Annotated[int | None, at_least(2)] = field(
        default=None, metadata={"help": "tokens held out at the end of the text, to evaluate on; default a twentieth, at most 16384"}
    )
    eval_tasks: list[str] = field(
        default_factory=list, metadata={"help": "tasks to score, or benchmarks: niah_single_1 vt; `retrieval --tasks list` prints them"}
    )
    eval_tasks_lengths: Annotated[list[int], at_least(1)] = field(
        default_factory=list, metadata={"help": "of the prompts of --eval_tasks in tokens; default --eval_lengths"}
    )
    eval_trials: Annotated[int, at_least(1)] = field(default=5, metadata={"help": "prompts for each of --eval_tasks and length"})
    eval_generate: bool = field(default=False, metadata={"help": "score what the model writes, and not answers teacher-forced"})
    report: bool = field(default=True, metadata={"help": "write report.html, with the loss by position before and after"})


class Settings(NamedTuple):
    """All settings of a run."""

    model: ModelArguments
    encoding: EncodingArguments
    data: DataArguments
    course: CourseArguments
    evaluation: EvaluationArguments
    training: TrainingArguments

    @property
    def output(self) -> Path:
        """The folder that everything goes to."""
        return Path(self.training.output_dir or DEFAULTS["output_dir"])

    @property
    def eval_lengths(self) -> list[int]:
        """Context lengths to evaluate at, ascending."""
        return sorted(self.evaluation.eval_lengths or [self.data.block_size])

    @property
    def tasks_lengths(self) -> list[int]:
        """Lengths of the prompts of tasks."""
        return (self.evaluation.eval_tasks_lengths or self.eval_lengths) if self.evaluation.eval_tasks else []

    @property
    def longest(self) -> int:
        """Tokens in the longest input that the model is to see, or is trained for."""
        target = 0 if (scheme := self.positions) is None else scheme.target_length or 0
        return max(self.data.block_size, *self.eval_lengths, *self.tasks_lengths, target)

    @property
    def reach(self) -> int:
        """The last position that the model sees, and 1."""
        return max(self.longest, 0 if (scheme := self.positions) is None else scheme.reach(self.data.block_size))

    @property
    def positions(self) -> PositionScheme | None:
        """What draws the positions of the training set; ValueError where it cannot be had."""
        course = self.course
        options = dict(parse_option(option, "--position_option") for option in course.position_option)
        if course.position_scheme is None:
            if options or course.position_target is not None:
                raise ValueError("--position_target and --position_option have no effect without --position_scheme")
            return None
        if course.position_target is not None:
            options["target_length"] = course.position_target
        elif "target_length" in describe_scheme(course.position_scheme).options and self.encoding.target_length is not None:
            options = {"target_length": self.encoding.target_length} | options
        return create_scheme(course.position_scheme, self.training.seed, **options)

    @property
    def moving(self) -> Anneal | None:
        """What moves an option of the encoding while the model trains; ValueError where it cannot be had."""
        course, options = self.course, encoding_options(self.encoding)
        if not (course.anneal or course.option_schedule):
            return None
        if course.anneal and course.option_schedule:
            raise ValueError("--anneal and --option_schedule exclude each other: stages may be as many as you like")
        flag = "--anneal" if course.anneal else "--option_schedule"
        if self.encoding.encoding == STOCK:
            raise ValueError(f"{flag} moves an option of an encoding: name it with --encoding")
        option, values = read_anneal(course.anneal) if course.anneal else read_stages(course.option_schedule)
        if option in options:
            raise ValueError(f"{option} is given twice: {flag} says where it starts and ends")
        name = name_of(self.encoding.encoding)
        if isinstance(values, dict):
            check_stages(flag, values, self.training.max_steps)
            return Stages(name, option, values, **options)
        if (steps := course.anneal_steps or self.training.max_steps) < 1:
            raise ValueError("--anneal needs a number of steps: --anneal_steps or --max_steps")
        if steps > self.training.max_steps > 0:
            raise ValueError(f"--anneal_steps {steps:,} are more than the run has, {self.training.max_steps:,}: it would not reach the end")
        return Anneal(name, option, *values, steps, course.anneal_every, course.anneal_shape == "geometric", **options)

    @property
    def sources(self) -> list[Source]:
        """Where the blocks come from, the long text first; ValueError for shares that are none.

        A file that stands there several times is divided by length: a document belongs to the entry with the largest `min_length` that
        it has.
        """
        data = self.data
        if bool(data.replay) != (data.replay_share is not None):
            raise ValueError("--replay names short texts and --replay_share their share, such as 0.4: give both, or neither")
        if data.replay and not 0 < (data.replay_share or 0) < 1:
            raise ValueError(f"--replay_share {data.replay_share:g} leaves nothing to mix: it is above 0 and below 1")
        replayed = data.replay_share or 0.0
        text = read_sources("--mix", data.mix, 1 - replayed, data.min_length) or [Source(data.dataset, 1 - replayed, data.min_length)]
        replay = [source._replace(replayed=True) for source in read_sources("--replay", data.replay, replayed)]
        if twice := [source.path for source in replay if any(same_file(source.path, file) for file in data.text)]:
            raise ValueError(f"{twice[0]} is in --text and in --replay: give it as --dataset, and --min_length divides its documents")
        return divide_by_length(text + replay)

    @property
    def rows(self) -> int | None:
        """Blocks that all steps of the run take; None where it is not counted in steps."""
        training = self.training
        if training.max_steps < 1:
            return None
        return training.max_steps * training.gradient_accumulation_steps * training.train_batch_size * training.world_size

    @property
    def weights(self) -> LongCE | None:
        """How tokens are weighed in the loss; ValueError for a loss that there is not."""
        name, options = name_of(self.course.loss), own_options(self.course.loss)
        takes = {PLAIN: (), LONGCE: tuple(field.name for field in fields(LongCE))}
        if name not in takes:
            raise ValueError(f"--loss {self.course.loss}: there is no such loss; there are: {', '.join(takes)}")
        if unknown := [option for option in options if option not in takes[name]]:
            raise ValueError(f"--loss {name!r} has no option {unknown[0]!r}. It takes {told(takes[name])}")
        return LongCE(**options) if name == LONGCE else None

    @property
    def boundaries(self) -> bool:
        """Whether the documents of a block are kept apart."""
        if self.data.boundaries is None:
            return self.positions is None or self.positions.target_length is None
        return self.data.boundaries == "respect"

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same in a run that goes on from the checkpoints of another."""
        own = [each for each in self if each is not self.training]
        everything = {name: value for each in own for name, value in asdict(cast(Any, each)).items() if name not in FREE}
        mixed = {"blocks of all steps": self.rows} if len(self.sources) > 1 else {}  # which decides on the blocks and their order
        return everything | {"eval_lengths": self.eval_lengths} | mixed


def parse(argv: list[str] | None = None) -> Settings:
    """Flags, those of TrainingArguments among them; before them, a preset or one YAML or JSON file, which they override.

    Raises:
        ValueError: settings that exclude each other.
    """
    kinds = [ModelArguments, EncodingArguments, DataArguments, CourseArguments, EvaluationArguments, TrainingArguments]
    # Left out, transformers would start only one process on a machine without accelerators.
    defaults = {**DEFAULTS, "use_cpu": not torch.accelerator.is_available(), "disable_tqdm": not sys.stderr.isatty()}
    settings = Settings(*parse_flags(kinds, "hf-posenc finetune", argv, defaults, {TrainingArguments: TRAINING}, DESCRIPTION))
    if "nll@" in (settings.training.metric_for_best_model or ""):
        settings.training.greater_is_better = False  # transformers takes every metric whose name does not end with "loss" for a score
    encoding_options(settings.encoding)
    check_course(settings)
    return settings


def check_course(settings: Settings) -> None:
    """Raise ValueError for schedules that exclude each other."""
    course, data = settings.course, settings.data
    if (weights := settings.weights) is not None:
        check_weights(weights, settings)
    target = None if (scheme := settings.positions) is None else scheme.target_length
    if target is not None and target <= data.block_size:
        raise ValueError(
            f"--position_target {target} leaves no positions to skip for blocks of {data.block_size} tokens: make it larger, or "
            "--block_size smaller"
        )
    if (lengths := read_lengths(course.length_schedule)) and max(lengths.values()) != data.block_size:
        raise ValueError(
            f"--length_schedule ends at {max(lengths.values()):,} tokens, --block_size is {data.block_size:,}: make them equal"
        )
    check_stages("--length_schedule", lengths, settings.training.max_steps)


def check_stages(flag: str, schedule: Mapping[int, float], steps: int) -> None:
    """Raise ValueError for a stage that begins when a run of so many steps is over; -1: nobody knows how many."""
    if schedule and (last := max(schedule)) >= steps > 0:
        raise ValueError(f"{flag} has a stage from step {last:,} on, and the run ends after {steps:,}: shorten it, or raise --max_steps")


def check_weights(weights: LongCE, settings: Settings) -> None:
    """Raise ValueError where tokens could not be weighed."""
    length = settings.data.block_size
    if not weights.reads(length):
        raise ValueError(
            f"--loss {weights} weighs no token of blocks of {length:,} tokens, which have no longer context: lower short and stride, "
            "or raise --block_size"
        )
    if not settings.course.loss_chunk:
        raise ValueError(f"--loss {LONGCE} is computed in chunks: give --loss_chunk a number of tokens")
    if settings.training.label_smoothing_factor:
        raise ValueError(f"--loss {LONGCE} and --label_smoothing_factor exclude each other")


def encoding_options(asked: EncodingArguments) -> dict[str, Any]:
    """The keyword arguments of `patch`.

    Raises:
        ValueError: an unknown encoding, or options for the stock one.
    """
    options = own_options(asked.encoding) | dict(parse_option(option) for option in asked.option)
    options |= {name: value for name in ("factor", "target_length") if (value := getattr(asked, name)) is not None}
    if asked.layers is not None:
        options["layers"] = parse_layers(asked.layers)
    if asked.encoding != STOCK:
        hf_posenc.describe(name_of(asked.encoding))
    elif options:
        raise ValueError(f"encoding {STOCK!r} takes no options, got {', '.join(options)}")
    return options


def read_sources(flag: str, entries: list[str], total: float, min_length: int = 1) -> list[Source]:
    """`["a.jsonl@0.3", "b.jsonl:min_length=512@0.7"]`, shares of `total`; where no entry has a share, all have the same.

    Raises:
        ValueError: shares that are not above 0, do not sum to 1, or that only some have; an option that there is not.
    """
    found = [read_source(flag, entry) for entry in entries]
    given = [share for _, share, _ in found if share is not None]
    if given and (len(given) < len(found) or not math.isclose(sum(given), 1, abs_tol=1e-6)):
        missing = f", and {len(found) - len(given)} have none" if len(given) < len(found) else ""
        raise ValueError(f"the shares of {flag} sum to {sum(given):g}{missing}: give each source its share, of 1 in all: a.jsonl@0.3 ...")
    return [Source(path, total * (1 / len(found) if share is None else share), own or min_length) for path, share, own in found]


def read_source(flag: str, entry: str) -> tuple[str, float | None, int | None]:
    """`b.jsonl:min_length=512@0.7` as ("b.jsonl", 0.7, 512)."""
    name, at, word = entry.rpartition("@")
    try:
        share = positive(f"{flag} {entry!r}: the share after @", float(word), at_most=1) if at else None
    except ValueError:
        raise ValueError(f"{flag} {entry!r}: a share is a number above 0 and at most 1, as in books.jsonl@0.3") from None
    path, colon, option = (name if at else entry).partition(":min_length=")
    if not path:
        raise ValueError(f"{flag} {entry!r} names no file and no dataset, as books.jsonl@0.3 does")
    try:
        return path, share, count(f"{flag} {entry!r}: min_length", int(option)) if colon else None
    except ValueError:
        raise ValueError(f"{flag} {entry!r}: min_length is a number of tokens, as in books.jsonl:min_length=65536@0.3") from None


def divide_by_length(sources: list[Source]) -> list[Source]:
    """The same, those of one file without documents in common.

    Raises:
        ValueError: a file stands there twice with the same `min_length`.
    """
    divided = []
    for source in sources:
        others = [other.min_length for other in sources if other is not source and same_file(other.path, source.path)]
        if source.min_length in others:
            raise ValueError(f"{source} is named twice: give one of them another min_length (path:min_length=65536@share), or leave it out")
        longer = [length for length in others if length > source.min_length]
        divided.append(source._replace(max_length=min(longer) - 1) if longer else source)
    return divided


def read_anneal(anneal: str) -> tuple[str, tuple[float, float]]:
    """`factor=1:4` as ("factor", (1.0, 4.0))."""
    option, _, ends = anneal.partition("=")
    try:
        start, end = map(float, ends.split(":"))
    except ValueError:
        raise ValueError(f"--anneal {anneal!r} is not of the form option=start:end, such as factor=1:4") from None
    return option, (start, end)


def same_file(one: str | None, other: str | None) -> bool:
    """Whether two paths, or names of datasets, are of the same."""
    return one is not None and other is not None and Path(one).resolve() == Path(other).resolve()


def read_stages(schedule: list[str]) -> tuple[str, dict[int, float]]:
    """`["theta", "0=10000", "100=50000"]` as ("theta", {0: 10000.0, 100: 50000.0})."""
    option, *entries = schedule
    if "=" in option:
        raise ValueError(f"--option_schedule {' '.join(schedule)} begins with the name of an option, such as theta 0=10000 100=50000")
    return option, read_steps("--option_schedule", entries, float)


def read_lengths(schedule: list[str]) -> dict[int, int]:
    """`["0=256", "100=512"]` as {0: 256, 100: 512}."""
    return read_steps("--length_schedule", schedule, int)


def read_steps(flag: str, entries: list[str], kind: Callable[[str], N]) -> dict[int, N]:
    """`["0=256", "100=512"]` by its steps."""
    try:
        stages = [(int(step), kind(value)) for step, value in (entry.split("=") for entry in entries)]
    except ValueError:
        raise ValueError(f"{flag} {' '.join(entries)} is not of the form step=value, such as 0=256 100=512") from None
    if len(found := dict(stages)) < len(stages):
        raise ValueError(f"{flag} {' '.join(entries)} has two values for one step: leave one of them out")
    return found
