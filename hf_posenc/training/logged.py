"""Numbers of a model that go through the log of `Trainer`."""

from __future__ import annotations

from typing import Any, TypeVar

from transformers import TrainerCallback

from ..evaluation.reach import forget_length

Callback = TypeVar("Callback", bound="Logged")


class Logged(TrainerCallback):
    """Measures the model whenever the Trainer evaluates, and at the end.

    The numbers go through the Trainer's own log, so they reach its state file and every `report_to`, and one of them can be
    `metric_for_best_model`. `last` holds those that were measured last.
    """

    def __init__(self) -> None:
        self.trainer: Any = None
        self.last: dict[str, float] = {}

    @property
    def names(self) -> list[str]:
        """Those that the numbers are logged by."""
        raise NotImplementedError

    def attach(self: Callback, trainer: Any) -> Callback:
        """Listen to `trainer`."""
        self.trainer = trainer
        trainer.add_callback(self)
        return self

    def measure(self, model: Any) -> dict[str, float]:
        """The numbers, under the names they are logged by."""
        raise NotImplementedError

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        self._log(model)
        if metrics is not None:
            metrics.update(self.last)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self._log(model)

    def _log(self, model: Any) -> None:
        model = self.trainer.accelerator.unwrap_model(model)
        forget_length(model)
        self.last = self.measure(model)
        forget_length(model)
        self.trainer.log(dict(self.last))
