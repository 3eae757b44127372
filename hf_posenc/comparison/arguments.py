"""What a study is: its flags, and the encodings they name."""

from __future__ import annotations

import shlex
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from typing import Annotated, Any

from ..encodings.options import number, positive
from ..evaluation.corpus import TextArguments
from ..flags import at_least
from ..variants import SAID_BY_THE_PLAN, STOCK, EncodingArguments, name_of

SCRATCH_ENCODINGS = ("learned", "sinusoidal", "rope", "nope", "alibi", "t5", "kerple")
SCRATCH_OPTIONS = {"sinusoidal": {"scale": 0.02}}
"""The small models start with embeddings of standard deviation 0.02; sines of amplitude 1 would drown them."""
APART = (*SAID_BY_THE_PLAN, "seeds", "save_seconds", "output_dir", "overwrite", "dry_run")
"""Flags that do not change what a single run finds."""

SCRATCH_FLAGS = ("model_type", "hidden_size", "num_layers", "num_heads")
DATASET_FLAGS = tuple(each.name for each in fields(TextArguments) if each.name != "text")


@dataclass
class CompareArguments(TextArguments, EncodingArguments):
    """Train short, test long: one start, the same data, several positional encodings, several seeds."""

    encoding: list[str] = field(
        default_factory=list,
        metadata={
            "help": "names from `hf-posenc list`, with options as yarn:factor=4 or kerple:kernel=power; 'stock' is the model as it comes; "
            f"default, for a model from scratch: {' '.join(SCRATCH_ENCODINGS)}"
        },
    )
    model: str | None = field(
        default=None,
        metadata={"help": "fine-tune this hub id, path or 'demo' in every run; default: a small byte-level model from scratch"},
    )
    model_type: str = field(default="gpt2", metadata={"help": "family of the model from scratch: gpt2, llama, or any that is supported"})
    hidden_size: Annotated[int, at_least(1)] = field(default=128, metadata={"help": "its width"})
    num_layers: Annotated[int, at_least(1)] = field(default=2, metadata={"help": "its layers"})
    num_heads: Annotated[int, at_least(1)] = field(default=4, metadata={"help": "its attention heads"})
    train_length: Annotated[int, at_least(2)] = field(
        default=128, metadata={"help": "context length in training, in tokens (bytes for a model from scratch)"}
    )
    eval_multiples: Annotated[list[int], at_least(1)] = field(
        default_factory=lambda: [1, 2, 4, 8], metadata={"help": "test at these multiples of it"}
    )
    eval_tokens: Annotated[int, at_least(2)] = field(
        default=16384, metadata={"help": "tokens at the beginning of the text that are held out to test on"}
    )
    steps: Annotated[int, at_least(1)] = field(default=350, metadata={"help": "optimizer steps"})
    batch_size: Annotated[int, at_least(1)] = field(default=16, metadata={"help": "sequences in a step"})
    accumulate: Annotated[int, at_least(1)] = field(
        default=1, metadata={"help": "forward passes that the sequences of a step are split into, to save memory"}
    )
    learning_rate: Annotated[float | None, positive] = field(
        default=None, metadata={"help": "peak of the cosine schedule; default 3e-3 from scratch, 2e-5 for fine-tuning"}
    )
    bf16: bool = field(default=False, metadata={"help": "train under bfloat16 autocast"})
    seeds: Annotated[list[int], at_least(0)] = field(
        default_factory=lambda: [0], metadata={"help": "of initial weights and data order; one run each"}
    )
    save_seconds: Annotated[float, partial(number, at_least=0)] = field(
        default=120, metadata={"help": "keep a checkpoint so often, to go on from if the run dies"}
    )
    output_dir: str = field(default="runs/compare", metadata={"help": "where the runs and the report go"})
    overwrite: bool = field(default=False, metadata={"help": "train again what is already there"})
    dry_run: bool = field(default=False, metadata={"help": "only list the runs, with those that are done"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}")
        if self.eval_tokens < max(self.lengths):
            raise ValueError(f"eval_tokens={self.eval_tokens} is less than the longest test of {max(self.lengths)} tokens")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different, got {self.seeds}")
        self._fill_in()

    def _fill_in(self) -> None:
        if self.model and not self.encoding:
            raise ValueError(f"--model needs --encoding: name those to fine-tune it with, and {STOCK!r} for the model as it comes")
        self.encoding = self.encoding or list(SCRATCH_ENCODINGS)
        if self.learning_rate is None:
            self.learning_rate = 2e-5 if self.model else 3e-3

    @property
    def lengths(self) -> list[int]:
        """Context lengths to test at, ascending."""
        return [self.train_length * multiple for multiple in sorted(set(self.eval_multiples))]

    @property
    def unit(self) -> str:
        """What the model reads."""
        return "token" if self.model else "byte"

    @property
    def command(self) -> str:
        """The command line that asks for this study."""
        words = ["hf-posenc", "compare"]
        for flag in fields(self):
            value = getattr(self, flag.name)
            default = flag.default if flag.default_factory is MISSING else flag.default_factory()
            if value != default and flag.name not in ("overwrite", "dry_run"):
                words += [f"--{flag.name}", *map(str, value if isinstance(value, list) else [value])]
        return shlex.join(words)


@dataclass(frozen=True)
class Variant:
    """An encoding with its options.

    Args:
        label: how it was asked for; its name in tables and plots.
        name: from the registry, or "stock".
        options: keyword arguments of `patch`.
    """

    label: str
    name: str
    options: dict[str, Any]


def read_variants(arguments: CompareArguments) -> list[Variant]:
    """The encodings that were asked for, with the options given to them (`read_plan`)."""
    plan = arguments.plan({} if arguments.model else SCRATCH_OPTIONS)
    return [Variant(label, name_of(label), options) for label, options in plan.items()]
