"""What changes while a model trains: an option of its positional encoding, or the length of its rows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from transformers import TrainerCallback, default_data_collator

from .. import catalogue, inspection, patching
from ..encodings import ENCODINGS, Geometry, PositionalEncoding, create

S = TypeVar("S", int, float)


class Anneal(TrainerCallback):
    """Moves one option of the positional encoding from `start` to `end` over the first `steps` optimizer steps.

    After g steps the option is at start + (end - start) g / steps, with `geometric` at start (end / start)^(g / steps), and from `steps` on
    at `end`; an option that counts tokens is rounded. Evaluations, checkpoints and the saved model hold the value of their step, and
    a resumed run goes on from that of its checkpoint.

    The optimizer keeps its parameters: encodings that have some are refused. Each change is proved from what is live in the
    model, and logged as "ENCODING.OPTION".

    Args:
        encoding: a name from `list_encodings()`, without learned parameters.
        option: the one of its options that moves, a number.
        start, end: its values; start is in force as soon as the callback is attached.
        steps: optimizer steps from one to the other.
        every: change it every so many steps.
        geometric: equal ratios instead of equal differences.
        options: other arguments of `patch`, constant.

    Raises:
        ValueError: the encoding, the option or a value is not possible.
    """

    def __init__(
        self, encoding: str, option: str, start: float, end: float, steps: int, every: int = 1, geometric: bool = False, **options: Any
    ):
        self.encoding, self.option, self.start, self.end = encoding, option, start, end
        self.steps, self.every, self.geometric, self.options = steps, every, geometric, options
        self.name = f"{encoding}.{option}"
        self.trainer: Any = None
        self.live: float | None = None
        self._check()

    def _check(self) -> None:
        known = catalogue.describe(self.encoding).options
        if self.option not in known:
            raise ValueError(f"{self.encoding!r} has no option {self.option!r}; it has: {', '.join(known) or 'none'}")
        if self.steps < 1 or self.every < 1:
            raise ValueError(f"steps and every must be at least 1, got {self.steps} and {self.every}")
        if self.start == self.end:
            raise ValueError(f"{self.name} is to go from {self.start} to {self.end}: that is no change; patch the model once instead")
        if self.geometric and self.start * self.end <= 0:
            raise ValueError(f"{self.name} from {self.start} to {self.end}: equal ratios need two numbers of one sign, neither of them 0")
        if has_parameters(self.encoding, self._arguments(self.start)):
            raise ValueError(f"{self.encoding!r} has learned parameters, which each change would take away from the optimizer")

    def _arguments(self, value: float) -> dict[str, Any]:
        """The keyword arguments of `patch`."""
        return {**self.options, self.option: value}

    def value(self, step: int) -> float:
        """The option after so many optimizer steps."""
        value = self._value(step)
        return round(value) if is_whole(self.encoding, self.option) else value

    def _value(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        part = (step - step % self.every) / self.steps
        change = self.start * (self.end / self.start) ** part - self.start if self.geometric else (self.end - self.start) * part
        return self.start + change

    def attach(self, trainer: Any) -> Anneal:
        """Patch the model of `trainer` at `start`, and change it as it trains.

        Raises:
            ValueError: the encoding refuses one of the values, the model cannot be patched, start and end are the same to it, or its
                optimizer exists already and holds parameters that the patch takes out. The model is unchanged then.
        """
        model = trainer.model
        for value in sorted({self.value(step) for step in range(self.steps + 1)}):
            self._build(model, value)
        before = {id(parameter) for parameter in model.parameters()}
        with patching.patched(model, self.encoding, **self._arguments(self.value(0))):
            start = inspection.inspect(model).fingerprint
        with patching.patched(model, self.encoding, **self._arguments(self.value(self.steps))):
            end, after = inspection.inspect(model).fingerprint, {id(parameter) for parameter in model.parameters()}
        if start == end:
            raise ValueError(f"{self.name} from {self.start} to {self.end} changes nothing in this model (fingerprint {start})")
        if trainer.optimizer is not None and before != after:
            raise ValueError(f"the optimizer has parameters that {self.encoding!r} takes out of the model: patch before making it")
        self.trainer = trainer
        self._move(model, self.value(0))
        # First in the list: a callback that evaluates when training ends is to see the final value, and a log written after
        # the one that decides what happens at the end of a step would take back its decision to log the loss.
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._move(model, self.value(state.global_step))
        self.trainer.log({self.name: self.live})

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self._move(model, self.value(state.global_step)):
            self.trainer.log({self.name: self.live})

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:  # the weights are those of that step by now
            self._move(model, self.value(state.best_global_step))

    def _move(self, model: Any, value: float) -> bool:
        """Patch where the value is a new one, see from what is live in the model that this changed something, and say whether it did."""
        if value == self.live:
            return False
        before = inspection.inspect(model).fingerprint
        patching.patch(model, self.encoding, **self._arguments(value))
        if self.live is not None and inspection.inspect(model).fingerprint == before and self._differ(model, self.live, value):
            raise ValueError(f"{self.name} went from {self.live} to {value}, but nothing in the model changed (fingerprint {before})")
        self.live = value
        return True

    def _build(self, model: Any, value: float) -> list[PositionalEncoding]:
        """The encoding at `value`, apart from the model, for each of its native geometries."""
        record = patching.patch_of(model)
        options = {name: option for name, option in self._arguments(value).items() if name != "layers"}
        return [create(self.encoding, record.geometry(layers[0]), **options) for layers in record.alike(record.attentions, True)]

    def _differ(self, model: Any, one: float, other: float) -> bool:
        """Whether two values mean different frequencies; some options move them in steps only (`partial` counts whole pairs)."""
        pairs = zip(self._build(model, one), self._build(model, other), strict=True)
        found = [(a.frequencies(), b.frequencies()) for a, b in pairs]
        return any(a is None or b is None or a[1] != b[1] or not torch.equal(a[0], b[0]) for a, b in found)


class Stages(Anneal):
    """Gives one option of the positional encoding other values from certain optimizer steps on.

    As theta is raised from stage to stage together with the length (EasyContext, github.com/jzhang38/EasyContext; ProLong,
    arXiv:2410.02660), for which `ProgressiveLengths` takes the same steps. All else is as with `Anneal`.

    Args:
        encoding: a name from `list_encodings()`, without learned parameters.
        option: the one of its options that changes, a number.
        schedule: optimizer step -> value from that step on, for example {0: 1e6, 1000: 5e6}.
        options: other arguments of `patch`, constant.

    Raises:
        ValueError: the schedule does not begin at step 0 or has no second value; or as with `Anneal`.
    """

    def __init__(self, encoding: str, option: str, schedule: Mapping[int, float], **options: Any):
        self.schedule = dict(sorted(schedule.items()))
        if len(self.schedule) < 2 or min(self.schedule) != 0:
            raise ValueError(f"the stages of {encoding}.{option} begin at step 0 and are at least two, got {dict(schedule)}")
        values = list(self.schedule.values())
        super().__init__(encoding, option, values[0], values[-1], max(self.schedule), **options)

    def _value(self, step: int) -> float:
        return in_force(self.schedule, step)


def in_force(schedule: dict[int, S], step: int) -> S:
    """What a schedule, sorted by the steps from which its entries hold, says of a step."""
    return next(value for begin, value in reversed(schedule.items()) if begin <= step)


def has_parameters(name: str, arguments: dict[str, Any]) -> bool:
    """Whether an encoding learns; False also where only a real model can tell whether these arguments are possible."""
    options = {option: value for option, value in arguments.items() if option != "layers"}
    try:
        return bool(list(create(name, Geometry(64, 4), **options).parameters()))
    except ValueError:
        return False


def is_whole(name: str, option: str) -> bool:
    """Whether an option of an encoding is a whole number by its annotation."""
    annotation = str(inspect.signature(ENCODINGS[name]).parameters[option].annotation)
    return "int" in annotation and "float" not in annotation


class ProgressiveLengths(TrainerCallback):
    """Shorter rows early in training, as many tokens in each step (GrowLength, Jin et al., 2023, arXiv:2310.00576, section 3).

    A data collator that cuts blocks of the longest length into equal rows of the length of the current step: four times as many rows at a
    quarter of the length. Positions that came with a block start again at 0 in each row. The rows of an evaluation stay whole.

    Args:
        schedule: optimizer step -> length of rows from that step on, for example {0: 256, 100: 512, 200: 1024}.

    Raises:
        ValueError: the schedule does not begin at step 0, or a length does not divide the longest.
    """

    def __init__(self, schedule: Mapping[int, int]):
        self.schedule = dict(sorted((int(step), int(length)) for step, length in schedule.items()))
        longest = max(self.schedule.values(), default=0)
        if not self.schedule or min(self.schedule) != 0:
            raise ValueError(f"the schedule of lengths begins at step 0, got {dict(schedule)}")
        if bad := [length for length in self.schedule.values() if length < 2 or longest % length]:
            raise ValueError(f"each length must divide the longest one, {longest}; {', '.join(map(str, bad))} does not")
        self.longest = longest
        self.trainer: Any = None
        self.training = self.evaluating = False
        self.first_step = self.batches = 0

    def length(self, step: int) -> int:
        """Tokens in a row while the model makes optimizer step number `step`, from 0."""
        return in_force(self.schedule, step)

    def attach(self, trainer: Any) -> ProgressiveLengths:
        """Collate for `trainer`, and follow its steps.

        Raises:
            ValueError: batches would be made in other processes, which do not see the step.
        """
        if trainer.args.dataloader_num_workers:
            raise ValueError("progressive lengths need dataloader_num_workers=0: a worker process does not see the step")
        self.trainer, trainer.data_collator = trainer, self
        trainer.add_callback(self)
        return self

    def on_epoch_begin(self, args, state, control, **kwargs):
        # Batches are made ahead of the step that they are for, so they are counted; an epoch may end with an incomplete step.
        self.training, self.evaluating, self.first_step, self.batches = True, False, state.global_step, 0

    def on_step_end(self, args, state, control, **kwargs):
        self.evaluating = control.should_evaluate

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluating = False

    def on_epoch_end(self, args, state, control, **kwargs):
        self.training = False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The columns of the rows, each [B n, L / n].

        Raises:
            ValueError: rows of another length than the longest.
        """
        batch = default_data_collator(list(rows))
        if self.evaluating or not self.training:
            return batch
        if (found := batch["input_ids"].shape[1]) != self.longest:
            raise ValueError(f"rows of {found:,} tokens, where the schedule of lengths ends at {self.longest:,}: pack blocks of that size")
        length = self.length(self.first_step + self.batches // self.trainer.args.gradient_accumulation_steps)
        self.batches += 1
        batch = {name: column.reshape(-1, length) for name, column in batch.items()}
        if "position_ids" in batch:
            batch["position_ids"] = restart_rows(batch["position_ids"])
        return batch


def restart_rows(positions: torch.Tensor) -> torch.Tensor:
    """Positions [B, L] of packed documents, with the document at the beginning of each row at 0."""
    steps = torch.arange(positions.shape[1])
    return steps - torch.where(positions == 0, steps, 0).cummax(1).values
