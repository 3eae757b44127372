"""The course of a fine-tuning run."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from typing import Any, cast

import torch
from transformers import default_data_collator, set_seed

from ..command import INTERRUPTED, exit_status
from ..evaluation.demo_model import resolve_model
from ..evaluation.models import check_tokenizer, load_tokenizer
from ..evaluation.processes import Processes
from ..evaluation.report import own_bar_only
from ..extras import MissingExtra
from ..files import check_writable, write_atomically
from ..page import check_pages
from ..training import LengthEvaluation, ProgressiveLengths, TaskEvaluation, check_isolation, perplexities, unpack
from .arguments import Settings, parse, read_lengths
from .checkpoints import SETTINGS, CheckpointTrainer, RecordFiles, StopAtNaN, check_same_run, last_checkpoint, steps_done, writing
from .checks import check_metric, check_settings
from .data import load_blocks
from .estimate import estimate
from .html import page
from .model import describe_model, load_model, make_ready
from .record import PAGE, Record
from .verify import reloads

Prepared = tuple[Settings, CheckpointTrainer, LengthEvaluation]


def main(argv: list[str] | None = None) -> int:
    """Run the recipe; returns the exit status. Once training has begun, only what the user can mend is told in one line."""
    with nullcontext() if sys.stderr.isatty() else own_bar_only():
        return _main(argv)


def _main(argv: list[str] | None) -> int:
    prepared: list[Prepared] = []
    if status := exit_status(lambda: prepared.append(prepare(parse(argv)))):
        return status
    try:
        train(*prepared[0])
        return finish(*prepared[0])
    except (FloatingPointError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED


def run(settings: Settings) -> int:
    """Train, save, load again and compare; the exit status is 1 where the reloaded model is another one."""
    prepared = prepare(settings)
    train(*prepared)
    return finish(*prepared)


def prepare(settings: Settings) -> Prepared:
    """Everything that can go wrong by mistake happens here, before the first step: text, model, encoding, checkpoints."""
    processes = Processes()
    processes.expect(settings.course.expect_processes)
    check_settings(settings)
    changes = schedules(settings)
    if not settings.course.estimate_only:
        check_writable(settings.output)
    check_same_run(settings)
    path = resolve_model(settings.model.model)
    tokenizer = load_tokenizer(path)
    tasks = tasks_of(settings, tokenizer)
    with settings.training.main_process_first(desc="packing"):
        train_blocks, test_blocks, mix = load_blocks(settings, tokenizer)
    evaluation = LengthEvaluation(unpack(test_blocks), settings.eval_lengths)
    check_metric(settings.training.metric_for_best_model, [evaluation] if tasks is None else [evaluation, tasks])
    record = record_of(settings, evaluation.ids)
    set_seed(settings.training.seed)
    model = load_model(path, settings)
    check_tokenizer(tokenizer, model)
    if record is not None:
        record.look(model)
    model = make_ready(model, settings)
    if settings.positions is not None:
        settings.positions.prepare(model, tokenizer)  # before there is a Trainer, which makes its folder
    description = describe_model(model)  # --anneal takes the model back to where it starts
    trainer = make_trainer(settings, model, tokenizer, train_blocks, test_blocks)
    for change in changes:
        change.attach(trainer)
    if settings.boundaries:
        check_isolation(model)
    text = f"text: {len(train_blocks):,} blocks of {settings.data.block_size:,} tokens"
    placed = f"positions: {settings.positions}" if settings.positions is not None else ""
    description = "\n".join(filter(None, [description, text, mix, placed, loss_of(settings), f"{processes.count} process(es)"]))
    if processes.main:
        begin(settings, description)
    evaluation.attach(trainer)
    if tasks is not None:
        tasks.attach(trainer)
    if record is not None:
        record.attach(trainer, evaluation, description)
    return settings, trainer, evaluation


def tasks_of(settings: Settings, tokenizer: Any) -> TaskEvaluation | None:
    """The tasks to score, with their prompts; None where there are none."""
    asked = settings.evaluation
    if not asked.eval_tasks:
        return None
    return TaskEvaluation(tokenizer, asked.eval_tasks, settings.tasks_lengths, asked.eval_trials, asked.eval_generate)


def record_of(settings: Settings, ids: torch.Tensor) -> Record | None:
    """What measures for the report; None where there is to be none, or what makes it is not installed."""
    if settings.course.estimate_only or not settings.evaluation.report:
        return None
    try:
        check_pages()
    except MissingExtra as missing:
        if settings.training.process_index == 0:
            print(f"no report: {missing}")
        return None
    return Record(settings, ids)


def make_trainer(settings: Settings, model: Any, tokenizer: Any, train_blocks: Any, test_blocks: Any) -> CheckpointTrainer:
    """The Trainer, with the watch over loss and checkpoints."""
    tokenizer.model_max_length = max(tokenizer.model_max_length, settings.longest)
    return CheckpointTrainer(
        model,
        settings.training,
        train_dataset=train_blocks,
        eval_dataset=test_blocks,
        processing_class=tokenizer,
        data_collator=default_data_collator,
        callbacks=[StopAtNaN(), RecordFiles()],
    )


def begin(settings: Settings, description: str) -> None:
    """Say what is about to be trained, and keep the settings for a run that goes on from this one."""
    print(description, flush=True)
    if not settings.course.estimate_only:
        write_atomically(settings.output / SETTINGS, json.dumps(settings.identity, indent=1))


def loss_of(settings: Settings) -> str:
    """A line on a loss with weights, and what these cost."""
    if (weights := settings.weights) is None:
        return ""
    more = weights.reads(settings.data.block_size)
    return f"loss: {weights}, for which {more:.1f} tokens are read without gradients for each that is trained on"


def schedules(settings: Settings) -> list[Any]:
    """What goes with training and is to be attached to the Trainer: positions, lengths, an encoding that changes."""
    found: list[Any] = []
    if lengths := read_lengths(settings.course.length_schedule):
        found.append(ProgressiveLengths(lengths))
    if (scheme := settings.positions) is not None:  # around the collator that cuts rows
        found.append(scheme)
    if (moving := settings.moving) is not None:
        found.append(moving)
    return found


def train(settings: Settings, trainer: CheckpointTrainer, evaluation: LengthEvaluation) -> None:
    """Estimate what the run will take; then train from the last checkpoint and save, unless only the estimate was asked for."""
    checkpoint = last_checkpoint(settings)
    found = estimate(trainer, steps_done(checkpoint))
    if trainer.is_world_process_zero():
        print(found or "estimate: none under FSDP and DeepSpeed, which cut the model up when training starts")
        print(f"going on from {checkpoint}" if checkpoint else "no checkpoint to go on from", flush=True)
    if settings.course.estimate_only:
        return
    if checkpoint and found and not found.micro_batches:
        if trainer.is_world_process_zero():
            print("finished: all steps were made before; evaluating and checking again", flush=True)
        trainer.take_up(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    with writing(settings.output):
        trainer.save_model()
        trainer.save_state()


def finish(settings: Settings, trainer: CheckpointTrainer, evaluation: LengthEvaluation) -> int:
    """Print what was reached, and the exit status: 1 where the saved model is not the one that was trained."""
    if settings.course.estimate_only or not trainer.is_world_process_zero():
        return 0
    for (name, nats), perplexity in zip(evaluation.last.items(), perplexities(evaluation.last.values()), strict=True):
        print(f"{name}: {nats:.4f} nats, perplexity {perplexity:.2f}", flush=True)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TaskEvaluation):
            print("".join(f"{name}: {score:.0%}\n" for name, score in callback.last.items()), end="", flush=True)
    write_report(settings, trainer)
    # Without the wrapper that computes in the precision of training: the reloaded model has none.
    model = cast(Any, trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False))
    return int(not reloads(model, settings.output, evaluation.ids[None, : evaluation.lengths[0]]))


def write_report(settings: Settings, trainer: CheckpointTrainer) -> None:
    """The page, where there is to be one."""
    for record in trainer.callback_handler.callbacks:
        if isinstance(record, Record):
            print(f"report: {write_atomically(settings.output / PAGE, page(settings, trainer, record))}", flush=True)
