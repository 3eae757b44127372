"""One training of a study with `Trainer`, which goes on where it died."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator
from transformers.trainer_callback import PrinterCallback

from ..finetuning.checkpoints import damage
from .arguments import CompareArguments
from .data import Rows

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Training:
    """What a training found.

    Args:
        losses: step -> mean nats of the steps since the last one here.
        seconds: of all steps; where the training was resumed, as measured from there on and scaled up.
        resumed_from: the step of the checkpoint it last went on from; 0 for none.
    """

    losses: dict[int, float]
    seconds: float
    resumed_from: int


class Watch(TrainerCallback):
    """Tells of every step, asks for a checkpoint now and then, and stops a training whose loss is no number.

    Args:
        tick: called with the number of steps done.
        save_seconds: how much work may be lost when the process dies.
    """

    def __init__(self, tick: Tick, save_seconds: float):
        self.tick, self.save_seconds = tick, save_seconds
        self.resumed_from = 0
        self.started = self.saved = time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs):
        self.resumed_from = state.global_step
        self.started = self.saved = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.tick(state.global_step)
        if time.perf_counter() - self.saved >= self.save_seconds and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        self.saved = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise FloatingPointError(f"the training loss is {logs['loss']} at step {state.global_step}; try a lower --learning_rate")

    def seconds(self, steps: int) -> float:
        """Of the whole training."""
        return (time.perf_counter() - self.started) * steps / max(1, steps - self.resumed_from)


def train(model: Any, batches: torch.Tensor, arguments: CompareArguments, seed: int, folder: Path, tick: Tick) -> Training:
    """Train on the rows of `batches` [steps * batch_size, L] in their order; checkpoints go to `folder`.

    Raises:
        FloatingPointError: the loss is no longer a number.
    """
    watch = Watch(tick, arguments.save_seconds)
    settings = training_arguments(arguments, seed, folder)
    trainer = Trainer(model, settings, train_dataset=Rows(batches), data_collator=default_data_collator, callbacks=[watch])
    trainer.pop_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    losses = {int(entry["step"]): entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    return Training(losses, watch.seconds(arguments.steps), watch.resumed_from)


def training_arguments(arguments: CompareArguments, seed: int, folder: Path) -> TrainingArguments:
    """AdamW, cosine schedule with 5 % warmup, weight decay 0.1; the order of the data is that of the rows."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch_size // arguments.accumulate,
        gradient_accumulation_steps=arguments.accumulate,
        train_sampling_strategy="sequential",
        learning_rate=arguments.learning_rate or 0.0,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, arguments.steps // 20),
        weight_decay=0.1,
        bf16=arguments.bf16,
        logging_steps=max(1, arguments.steps // 50),
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=seed,
    )


def last_checkpoint(folder: Path) -> str | None:
    """The last complete checkpoint; one that the process died in does not count."""
    found = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*") if damage(path) is None}
    return str(found[max(found)]) if found else None
