"""`hf-posenc eval`: tasks of lm-eval, one loaded model, several encodings side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from ...command import exit_status
from ...extras import extra
from ...files import write_atomically
from ...flags import at_least, parse
from ...tables import print_numbers
from ...variants import EncodingArguments
from ..measure import versions
from ..models import ModelArguments, encoded, inspect_model, load_model, load_tokenizer
from ..processes import Processes
from ..report import csv_text, own_bar_only
from ..side_by_side import SideBySide, settings_of, started
from .result import HarnessResult, read


@dataclass
class HarnessArguments(EncodingArguments, ModelArguments):
    """Tasks of lm-eval for several positional encodings of one model."""

    tasks: list[str] = field(
        default_factory=list, metadata={"help": "of lm-eval: names, groups or YAML files; `lm_eval ls tasks` prints them"}
    )
    include_path: str | None = field(default=None, metadata={"help": "folder with further tasks"})
    num_fewshot: Annotated[int | None, at_least(0)] = field(
        default=None, metadata={"help": "examples before each question; default the task's"}
    )
    limit: Annotated[int | None, at_least(1)] = field(default=None, metadata={"help": "questions of each task; default all"})
    batch_size: Annotated[int, at_least(1)] = field(default=1, metadata={"help": "questions at once"})
    max_length: Annotated[int | None, at_least(1)] = field(
        default=None, metadata={"help": "tokens that a question keeps, the last ones; default as far as the encoding reaches"}
    )
    chat: bool = field(default=False, metadata={"help": "put questions into the tokenizer's chat template"})
    output_dir: str = field(default="runs/eval", metadata={"help": "where the JSON and CSV files go"})


def main(argv: list[str] | None = None) -> int:
    """Run the tasks; returns the exit status, 130 after Ctrl-C."""
    return exit_status(lambda: run(*parse([HarnessArguments], "hf-posenc eval", argv)))


@own_bar_only()
def run(arguments: HarnessArguments) -> dict[str, HarnessResult]:
    """Ask every encoding, but for what is on disk with the same settings, and compare them."""
    if not arguments.tasks:
        raise ValueError("--tasks is missing: names of tasks of lm-eval, as lambada_openai piqa")
    return Harness.of(arguments, started(arguments, arguments.output_dir)).run()


@dataclass
class Harness(SideBySide[HarnessResult]):
    """The tasks of lm-eval. What can be wrong with tasks and encodings is found before the first is measured."""

    kind = HarnessResult
    tasks: Any

    @classmethod
    def of(cls, arguments: HarnessArguments, processes: Processes) -> Harness:
        """Tasks, model and encodings that the command line asks for."""
        if processes.count > 1:
            raise ValueError("lm-eval is run by one process here: leave torchrun out")
        options = arguments.plan()
        with extra("harness"):
            from lm_eval.tasks import TaskManager
        tasks = TaskManager(include_path=arguments.include_path)
        if missing := [name for name in arguments.tasks if not name.endswith(".yaml") and not tasks.match_tasks([name])]:
            raise ValueError(f"--tasks {' '.join(missing)}: lm-eval has none of that name; `lm_eval ls tasks` prints them")
        tokenizer = load_tokenizer(arguments.path)
        model = load_model(arguments.path, arguments)
        return cls(arguments, processes, tokenizer, model, settings_of(arguments, model, options, {}), tasks)

    def find(self, name, settings, journal, advance):
        start = time.perf_counter()
        with encoded(self.model, name, settings["options"]):
            _, live = inspect_model(self.model)
            said = self.ask()
        scores, errors = read(said["results"])
        samples = {task: counts["effective"] for task, counts in said["n-samples"].items()}
        return HarnessResult(scores, errors, samples, {**versions(), **said["versions"]}, settings, live, time.perf_counter() - start)

    def ask(self) -> Mapping[str, Any]:
        """What lm-eval says of the model as it is now."""
        with extra("harness"):
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM
        asked = self.arguments
        harness = HFLM(
            pretrained=self.model,
            tokenizer=self.tokenizer,
            max_length=asked.max_length,
            batch_size=asked.batch_size,
            device=str(self.model.device),
        )
        said = simple_evaluate(
            harness,
            tasks=list(asked.tasks),
            num_fewshot=asked.num_fewshot,
            limit=asked.limit,
            task_manager=self.tasks,
            apply_chat_template=asked.chat,
            log_samples=False,
            bootstrap_iters=1000,
        )
        if said is None:
            raise ValueError("lm-eval gave no result to this process")
        return said

    def tokens(self, name, settings):
        return None

    def report(self, results):
        """The table and eval.csv."""
        rows = [row for name, result in results.items() for row in result.rows(name)]
        write_atomically(self.output / "eval.csv", csv_text(rows))
        cells = {(row["encoding"], row["task"], row["metric"]): row for row in rows}
        asked = dict.fromkeys((row["task"], row["metric"]) for row in rows)
        table = [[" ".join(each), *(cell(cells.get((name, *each))) for name in results)] for each in asked]
        print_numbers("lm-eval", ["task, metric", *results], table)
        print(f"written to {self.output}: one JSON per encoding, eval.csv")


def cell(row: Mapping[str, Any] | None) -> str:
    """A value and its standard error."""
    if row is None:
        return "-"
    error = row["stderr"]
    return f"{row['value']:.4g}" + ("" if error is None or error != error else f" ± {error:.2g}")
