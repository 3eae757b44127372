"""The passkey recipe: the one task of its name, with its own flags, and a heat map of each encoding."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial
from typing import Annotated, Literal

from ...command import exit_status
from ...encodings.options import number
from ...flags import at_least, parse
from ...variants import EncodingArguments
from ..models import ModelArguments
from ..report import own_bar_only
from ..side_by_side import started
from ..tasks.passkey import PasskeyTask
from .grids import Grids
from .passkey_report import report
from .result import RetrievalResult


@dataclass
class PasskeyArguments(EncodingArguments, ModelArguments):
    """Whether a model finds a number in its context, by length and depth, for several positional encodings of one model."""

    lengths: Annotated[list[int], at_least(1)] = field(
        default_factory=lambda: [1024, 2048, 4096], metadata={"help": "of the prompts, answer included, in tokens"}
    )
    depths: Annotated[list[float], partial(number, at_least=0)] = field(
        default_factory=lambda: [5.0], metadata={"help": "of the needle: values from 0 to 1, or one number of equal steps"}
    )
    trials: Annotated[int, at_least(1)] = field(default=5, metadata={"help": "prompts for each length and depth"})
    digits: Annotated[int, at_least(1)] = field(default=5, metadata={"help": "of every number"})
    needles: Annotated[int, at_least(1)] = field(default=1, metadata={"help": "pass keys in a prompt; several have names"})
    ask: Literal["one", "all"] = field(default="one", metadata={"help": "ask for one of the pass keys, or for all in turn"})
    distractors: Annotated[int, at_least(0)] = field(default=0, metadata={"help": "numbers in a prompt that are no pass keys"})
    filler: str = field(default="grass", metadata={"help": "grass (the usual sentences), essay (English that every Python has), or a file"})
    chat: bool = field(default=False, metadata={"help": "put the prompt into the tokenizer's chat template"})
    generate: bool = field(default=False, metadata={"help": "also generate the answers greedily and compare the digits"})
    seed: Annotated[int, at_least(0)] = field(default=0, metadata={"help": "of keys, names, places and the beginning of the filler"})
    output_dir: str = field(default="runs/passkey", metadata={"help": "where the JSON, CSV and PNG files go"})

    @property
    def task(self) -> PasskeyTask:
        """The task that these flags describe."""
        return PasskeyTask(**{each.name: getattr(self, each.name) for each in fields(PasskeyTask)})


def main(argv: list[str] | None = None) -> int:
    """Run the recipe; returns the exit status, 130 after Ctrl-C."""
    return exit_status(lambda: run(*parse([PasskeyArguments], "hf-posenc passkey", argv)))


@own_bar_only()
def run(arguments: PasskeyArguments) -> dict[str, RetrievalResult]:
    """Measure every encoding, skipping those already on disk with the same settings, and compare them.

    Raises:
        Interrupted: Ctrl-C; what was finished is reported and on disk.
    """
    return Passkeys.of(arguments, started(arguments, arguments.output_dir), [arguments.task], controls=False).run()


class Passkeys(Grids):
    """The one task."""

    def report(self, results):
        report(results, self.output, self.model)
