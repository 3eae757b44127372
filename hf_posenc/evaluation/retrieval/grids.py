"""What the recipes share that put tasks to one loaded model with several encodings in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ..models import check_tokenizer, load_model, load_tokenizer
from ..processes import Processes
from ..side_by_side import SideBySide, settings_of
from ..tasks import Task
from .grid import Grid
from .prompts import Prompts
from .result import RetrievalResult
from .retrieval import check_reach, retrieval


class Asked(NamedTuple):
    """One task for one encoding."""

    encoding: str
    task: Task
    grid: Grid


@dataclass
class Grids(SideBySide[RetrievalResult]):
    """The grid of each encoding and task. All that can be wrong is found before the first is measured.

    Args:
        asked: what the names of the plan stand for.
    """

    kind = RetrievalResult
    asked: dict[str, Asked]

    @classmethod
    def of(cls, arguments: Any, processes: Processes, tasks: Sequence[Task], controls: bool) -> Grids:
        """Prompts, model and encodings that the command line asks for."""
        options, path = arguments.plan(), arguments.path
        grid = Grid.of(arguments.lengths, arguments.depths or None, arguments.trials)
        tokenizer = load_tokenizer(path)
        prompts = {task: Prompts(task, tokenizer) for task in tasks}
        grids = {task: grid.fitted(prompts[task], controls) for task in tasks}
        model = load_model(path, arguments)
        check_tokenizer(tokenizer, model)
        check_reach(model, options, grid.lengths[-1])
        shared = settings_of(arguments, model, options, {})
        asked = {cls.label(name, task, tasks): Asked(name, task, grids[task]) for name in options for task in tasks}
        plan = {label: shared[it.encoding] | about(it, prompts[it.task]) for label, it in asked.items()}
        return cls(arguments, processes, tokenizer, model, plan, asked)

    @staticmethod
    def label(encoding: str, task: Task, tasks: Sequence[Task]) -> str:
        """What a task for an encoding is called."""
        return encoding if len(tasks) == 1 else f"{encoding} {task.name}"

    def find(self, name, settings, journal, advance):
        it = self.asked[name]
        how = {"generate": self.arguments.generate, "controls": it.grid.control is not None, "journal": journal, "settings": settings}
        depths = None if it.grid.depths == (None,) else it.grid.depths
        encodings = {it.encoding: settings["options"]}
        found = retrieval(
            self.model, self.tokenizer, it.task, it.grid.lengths, depths, it.grid.trials, encodings=encodings, progress=advance, **how
        )
        return found[it.encoding]

    def tokens(self, name, settings):
        return self.asked[name].grid.tokens * (2 if self.arguments.generate else 1) // self.processes.count


def about(it: Asked, prompts: Prompts) -> dict[str, Any]:
    """What a result depends on besides the model and the encoding."""
    task = {"name": it.task.name, "template": it.task.template, **asdict(it.task)}
    return {**asdict(it.grid), "task": task, "filler_text": prompts.filler_identity}
