"""What is checked before anything that takes time: flags that belong together, and the numbers in the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..training.logged import Logged
from .arguments import Settings


def check_settings(settings: Settings) -> None:
    """Raise ValueError for flags that would have no effect."""
    course, evaluation = settings.course, settings.evaluation
    if course.lora_rank is None:
        refuse_idle(course, "lora_", "--lora_rank", "all weights would be trained")
    if course.anneal is None:
        refuse_idle(course, "anneal_", "--anneal", "no option would move")
    if not evaluation.eval_tasks:
        refuse_idle(evaluation, ("eval_tasks_", "eval_trials", "eval_generate"), "--eval_tasks", "nothing would be asked")


def refuse_idle(asked: Any, names: str | tuple[str, ...], needed: str, consequence: str) -> None:
    """Raise ValueError where one of the flags whose names begin so is given, without the one that they need."""
    fields = {field.name: field for field in dataclasses.fields(asked) if field.name.startswith(names)}
    unset = {name: [] if field.default is dataclasses.MISSING else field.default for name, field in fields.items()}
    if given := [f"--{name}" for name, default in unset.items() if getattr(asked, name) != default]:
        raise ValueError(f"{', '.join(given)} has no effect without {needed}, and {consequence}: give {needed} too")


def check_metric(wanted: str | None, measuring: Sequence[Logged]) -> None:
    """Raise ValueError for a metric to choose the best checkpoint by that no evaluation has."""
    known = ["eval_loss", *(name for each in measuring for name in each.names)]
    if wanted and f"eval_{wanted.removeprefix('eval_')}" not in known:
        listed = ", ".join(name.removeprefix("eval_") for name in known)
        raise ValueError(f"--metric_for_best_model {wanted} is not what an evaluation of this run measures, which is: {listed}")


def check_finite(model: Any, path: str) -> None:
    """Raise ValueError where a model was loaded with weights that are no numbers."""
    held = {name: p for name, p in model.named_parameters() if not p.is_meta}
    if broken := [name for name, p in held.items() if not p.isfinite().all()]:
        raise ValueError(
            f"{path} has weights that are NaN or infinite as {str(model.dtype).removeprefix('torch.')} ({broken[0]}, {len(broken)} of "
            f"{len(held)} tensors): take an undamaged checkpoint, or a wider --dtype"
        )
