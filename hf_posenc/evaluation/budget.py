"""Minutes that a search may take, what it says meanwhile, and the flags of the commands that have a budget."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from ..encodings.options import positive
from ..files import check_writable
from ..flags import at_least
from ..inspection import inspect
from .corpus import read_texts
from .kept import FOLDER
from .models import ModelArguments, load_model, load_tokenizer
from .processes import Processes

MINUTES = 20.0
Say = Callable[[str], None]


def silent(line: str) -> None:
    """Say nothing."""


def announced(line: str) -> None:
    """Print it now."""
    print(line, flush=True)


@dataclass
class Budget:
    """Of one search, from now on.

    Args:
        minutes: in all.
        say: called with a line for each measurement.

    Raises:
        ValueError: no minutes, or no end of them.
    """

    minutes: float
    say: Say = silent
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise ValueError(f"budget is a finite number of minutes above 0, got {self.minutes}")

    @classmethod
    def of(cls, given: float | Budget, say: Say) -> Budget:
        """Of so many minutes, or one that has begun."""
        return given if isinstance(given, Budget) else cls(given, say)

    @property
    def passed(self) -> float:
        """Seconds."""
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds."""
        return self.minutes * 60 - self.passed

    def told(self, line: str) -> None:
        """Say it, with the time."""
        self.say(f"[{self.passed / 60:.1f} of {self.minutes:.3g} min] {line}")


@dataclass
class BudgetArguments(ModelArguments):
    """The length to reach, and the time."""

    length: Annotated[int | None, at_least(2)] = field(
        default=None, metadata={"help": "to reach, in tokens; default twice the native context"}
    )
    budget: Annotated[float, positive] = field(default=MINUTES, metadata={"help": "minutes"})
    text: list[str] = field(default_factory=list, metadata={"help": "files to read, UTF-8; default English that every Python has"})


def begun(arguments: BudgetArguments, output: Path) -> dict[str, Any]:
    """What a search takes, loaded within its time; `output` keeps what is measured.

    Raises:
        ValueError: several processes, whose clocks would part them.
        OSError: the output could not be written.
    """
    clock, processes = Budget(arguments.budget, announced), Processes()
    processes.expect(arguments.expect_processes)
    if processes.count > 1:
        raise ValueError("a search within a budget runs in one process: start it without torchrun")
    check_writable(output)
    texts = read_texts(arguments.text) if arguments.text else None
    tokenizer = load_tokenizer(arguments.path)
    model = load_model(arguments.path, arguments)
    length = arguments.length or 2 * (inspect(model).context_length or 0)
    if arguments.overwrite:
        shutil.rmtree(output / FOLDER, ignore_errors=True)
    return {"model": model, "tokenizer": tokenizer, "length": length, "budget": clock, "texts": texts, "kept": output}
