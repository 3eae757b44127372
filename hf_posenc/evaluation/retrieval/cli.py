"""The retrieval recipe: tasks of long context, one loaded model, several encodings side by side."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from ...command import exit_status
from ...encodings.options import number
from ...flags import at_least, parse
from ...variants import EncodingArguments, file_name
from ..models import ModelArguments, digest
from ..report import own_bar_only
from ..side_by_side import started
from ..tasks import TASKS, Task, names_of
from ..tasks.words import ESSAY
from .effective import Threshold
from .grids import Grids
from .report import report
from .result import RetrievalResult

SHARE = partial(number, at_least=0, at_most=1)


@dataclass
class RetrievalArguments(EncodingArguments, ModelArguments):
    """Whether a model uses its context: RULER and other tasks by length, for several positional encodings of one model."""

    tasks: list[str] = field(
        default_factory=lambda: ["niah_single_1", "niah_multikey_1", "vt", "json_kv"],
        metadata={"help": "their names, or benchmarks (ruler, babilong, ...); `--tasks list` prints them"},
    )
    lengths: Annotated[list[int], at_least(1)] = field(
        default_factory=lambda: [2048, 4096, 8192], metadata={"help": "of the prompts in tokens, those that an answer may have included"}
    )
    depths: Annotated[list[float], partial(number, at_least=0)] = field(
        default_factory=list,
        metadata={"help": "of the needle, for tasks that have one: values from 0 to 1, or one number of equal steps; default by chance"},
    )
    trials: Annotated[int, at_least(1)] = field(default=5, metadata={"help": "prompts for each task, length and depth"})
    text: str = field(default=ESSAY, metadata={"help": "what needles are hidden in: essay (English that every Python has), or a file"})
    squad: str | None = field(default=None, metadata={"help": "of qa_1: dev-v2.0.json, or a hub's data set as rajpurkar/squad_v2"})
    hotpotqa: str | None = field(
        default=None, metadata={"help": "of qa_2: hotpot_dev_distractor_v1.json, or a hub's data set as hotpotqa/hotpot_qa"}
    )
    chat: bool = field(default=False, metadata={"help": "put the prompt into the tokenizer's chat template"})
    generate: bool = field(default=False, metadata={"help": "also generate the answers greedily and score them as the authors do"})
    seed: Annotated[int, at_least(0)] = field(default=0, metadata={"help": "of everything that chance decides in a prompt"})
    threshold: Annotated[float, SHARE] = field(default=0.85, metadata={"help": "share of the first score that an effective length keeps"})
    absolute: bool = field(default=False, metadata={"help": "the threshold is the score itself (RULER: 0.856)"})
    output_dir: str = field(default="runs/retrieval", metadata={"help": "where the JSON, CSV and PNG files go"})

    def asked(self) -> list[Task]:
        """The tasks that these flags describe."""
        return [self.made(TASKS[name]()) for name in names_of(self.tasks)]

    def made(self, task: Task) -> Task:
        """A task with the flags that it takes."""
        mine = {each.name for each in fields(self)}
        return replace(task, **{each.name: getattr(self, each.name) for each in fields(task) if each.name in mine})


ELSEWHERE = ("tasks", "threshold", "absolute", "text", "squad", "hotpotqa", "chat", "seed")
"""Flags that no result depends on, or only those of tasks that take them, which say so themselves."""


def main(argv: list[str] | None = None) -> int:
    """Run the recipe; returns the exit status, 130 after Ctrl-C."""
    return exit_status(lambda: run(*parse([RetrievalArguments], "hf-posenc retrieval", argv)))


@own_bar_only()
def run(arguments: RetrievalArguments) -> dict[str, RetrievalResult]:
    """Measure every encoding on every task, skipping what is on disk with the same settings, and compare them.

    Raises:
        Interrupted: Ctrl-C; what was finished is reported and on disk.
    """
    if arguments.tasks == ["list"]:
        print(*(f"{name:<16} {TASKS[name]().source}" for name in TASKS), sep="\n")
        return {}
    return Tasks.of(arguments, started(arguments, arguments.output_dir), arguments.asked(), controls=True).run()


class Tasks(Grids):
    """Several tasks."""

    @staticmethod
    def label(encoding, task, tasks):
        return f"{encoding} {task.name}"

    def file(self, name: str) -> Path:
        it, settings = self.asked[name], {key: value for key, value in self.plan[name].items() if key not in ELSEWHERE}
        return self.output / f"{file_name(it.encoding)}-{it.task.name}-{digest(settings)}.json"

    def report(self, results: dict[str, Any]) -> None:
        found: dict[str, dict[str, RetrievalResult]] = {}
        for name, result in results.items():
            it = self.asked[name]
            found.setdefault(it.encoding, {})[it.task.name] = result
        report(found, Threshold(self.arguments.threshold, self.arguments.absolute), self.output, self.model)
