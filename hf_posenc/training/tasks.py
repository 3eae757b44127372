"""Retrieval while a model trains: the callback that logs the scores of tasks at several lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.integrations import is_deepspeed_zero3_enabled

from ..evaluation.models import check_tokenizer, live_name
from ..evaluation.processes import Processes
from ..evaluation.reach import check_position_table
from ..evaluation.retrieval.grid import Grid
from ..evaluation.retrieval.prompts import Prompts
from ..evaluation.retrieval.retrieval import Measurement
from ..evaluation.tasks import Task, create, names_of
from .logged import Logged


class TaskEvaluation(Logged):
    """Logs `eval_TASK_L`, the mean score of a task in prompts of L tokens, whenever the Trainer evaluates, and at the end.

        TaskEvaluation(tokenizer, ["niah_single_1", "vt"], [4096, 8192]).attach(trainer)

    The same prompts each time, so that what changes is the model. Several processes share them, and each gets the same numbers. Mode,
    gradients and random numbers of the training are left alone.

    Args:
        tokenizer: the model's.
        tasks: names from `evaluation.tasks.TASKS`, or of a benchmark ("ruler": all of its tasks), or tasks.
        lengths: of the prompts in tokens, those that an answer may have included.
        trials: prompts for each task and length; each is one pass through the model.
        generate: let the model write the answers, and score them as the authors of the task do; by default they are teacher-forced.

    Raises:
        ValueError: an unknown task, or a length that is too short for the words of one.
        MissingExtra: the words of a task are in a library that is not installed.
    """

    def __init__(self, tokenizer: Any, tasks: Sequence[str | Task], lengths: Sequence[int], trials: int = 5, generate: bool = False):
        super().__init__()
        self.tokenizer, self.generate = tokenizer, generate
        self.grid = Grid.of(lengths, None, trials)
        named = [task if isinstance(task, Task) else create(task) for task in expanded(tasks)]
        self.prompts = [Prompts(task, tokenizer) for task in named]
        for each in self.prompts:
            self.grid.fitted(each)
        self.processes: Any = None

    def attach(self, trainer: Any) -> TaskEvaluation:
        """Listen to `trainer`.

        Raises:
            ValueError: its model has another tokenizer, or positions that end before the longest prompt; or it will be cut up among
                processes, each of which needs all of it for its prompts.
        """
        if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ValueError("tasks need the whole model in each process, which FSDP and ZeRO-3 cut up: score the saved model instead")
        check_tokenizer(self.tokenizer, trainer.model)
        check_position_table(trainer.model, self.grid.lengths[-1])
        self.processes = Processes()
        return super().attach(trainer)

    @property
    def names(self) -> list[str]:
        return [f"eval_{each.task.name}_{length}" for each in self.prompts for length in self.grid.lengths]

    def measure(self, model: Any) -> dict[str, float]:
        """The mean score of each task at each length, from 0 to 1, under the names they are logged by.

        Raises:
            FloatingPointError: the loss of an answer is infinite or not a number.
        """
        asked = [Measurement(self.grid.fitted(each), each, self.generate, self.processes, None, None, {}) for each in self.prompts]
        with self.trainer.accelerator.autocast():
            results = [each.measure(model, live_name(model), {}) for each in asked]
        scores = [each for result in results for each in result.scores().values()]
        return {name: sum(each) / len(each) for name, each in zip(self.names, scores, strict=True)}


def expanded(tasks: Sequence[str | Task]) -> list[str | Task]:
    """Tasks, each once, with the names of those of a benchmark in its place."""
    found = [each for task in tasks for each in ([task] if isinstance(task, Task) else names_of([task]))]
    return [each for at, each in enumerate(found) if each not in found[:at]]
