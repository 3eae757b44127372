"""Checkpoints that a run can go on from, whatever it died of."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import write_atomically
from .arguments import Settings

SETTINGS = "finetune.json"
FILES = "files.json"
"""In a checkpoint: the size of each of its files, in bytes, written when all of them were."""
STATE = "trainer_state.json"
"""What `Trainer` writes last into a checkpoint."""
TORCH_WRITES = ("PytorchStreamWriter", "unexpected pos")
"""In the messages of `torch.save` when it cannot write."""


class CheckpointTrainer(Trainer):
    """`Trainer` that says what to do when a checkpoint cannot be written, and makes no step more where all were made."""

    def take_up(self, checkpoint: str) -> None:
        """The end of a run whose last step is in `checkpoint`; `train` would make one more."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / STATE))
        # Both, in this order: callbacks, the progress bar among them, may open at the beginning what they close at the end.
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)  # half of this step's, from a run before, would pass for the rest of it
        self.accelerator.wait_for_everyone()
        with writing(folder):
            super()._save_checkpoint(model, trial)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise OSError where something in a folder cannot be written: safetensors and torch have errors of their own for a full disk."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in TORCH_WRITES):
            raise
        raise OSError(
            f"cannot write {folder} ({error}): make room on the disk, or choose another --output_dir; earlier checkpoints are "
            "whole, and the same command goes on from the last of them"
        ) from error


class RecordFiles(TrainerCallback):
    """Writes the sizes of the files of each checkpoint into it, so that a damaged one is recognised."""

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()  # each process writes files of its own
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            with writing(folder):
                write_atomically(folder / FILES, json.dumps(file_sizes(folder), indent=1))


class StopAtNaN(TrainerCallback):
    """Ends training with FloatingPointError at a loss that is not a number, before a checkpoint of it is written."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log = control.should_log or control.should_save

    on_epoch_end = on_step_end

    def on_log(self, args, state, control, logs=None, **kwargs):
        if (loss := (logs or {}).get("loss", 0.0)) - loss != 0:  # NaN and infinite
            raise FloatingPointError(
                f"the loss is {loss} at step {state.global_step}: lower --learning_rate, lengthen the warmup, or train in float32 or "
                f"bfloat16; {last_words(Path(args.output_dir))}"
            )


def last_words(output: Path) -> str:
    """What remains of a run that ended early."""
    folders = checkpoints(output)
    return f"the last checkpoint is {folders[-1]}" if folders else "there is no checkpoint yet"


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below a folder, by its path in it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != FILES)
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None where it is whole."""
    try:
        json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        return f"{STATE} is missing or cut off"
    if not (folder / FILES).is_file():
        return None
    found = file_sizes(folder)
    for name, size in json.loads((folder / FILES).read_text()).items():
        if found.get(name) != size:
            return f"{name} has {found.get(name, 'no')} bytes of {size}"
    return None


def checkpoints(output: Path) -> list[Path]:
    """The checkpoints in a folder, the last one last."""
    step = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    folders = output.iterdir() if output.is_dir() else ()
    found = {int(named[1]): folder for folder in folders if (named := step.fullmatch(folder.name)) and folder.is_dir()}
    return [found[at] for at in sorted(found)]


def last_checkpoint(settings: Settings) -> str | None:
    """The checkpoint to go on from: the one asked for, or else the last whole one in the output folder.

    Damaged ones behind it are removed: the process died while it wrote them, and nothing can be done with them.

    Raises:
        ValueError: the one asked for is damaged or not there.
    """
    asked = settings.training.resume_from_checkpoint
    if asked is not None:
        if (problem := damage(Path(asked))) is not None:
            raise ValueError(f"cannot go on from {asked}: {problem}; name another checkpoint, or leave --resume_from_checkpoint out")
        return asked
    with settings.training.main_process_first(local=False, desc="looking for checkpoints"):
        for folder in reversed(checkpoints(settings.output)):
            if (problem := damage(folder)) is None:
                return str(folder)
            print(f"{folder} is incomplete ({problem}): removed")
            shutil.rmtree(folder, ignore_errors=True)
    return None


def steps_done(checkpoint: str | None) -> int:
    """Optimizer steps behind a checkpoint; 0 without one."""
    return json.loads((Path(checkpoint) / STATE).read_text())["global_step"] if checkpoint else 0


def check_same_run(settings: Settings) -> None:
    """Refuse to go on from the checkpoints of a run that had another model, encoding, text or course."""
    checkpoint, file = last_checkpoint(settings), settings.output / SETTINGS
    if checkpoint is None or not file.exists():
        return
    before, own = json.loads(file.read_text()), json.loads(json.dumps(settings.identity))
    if changed := [f"{name} was {before.get(name)!r}, is {own[name]!r}" for name in own if before.get(name) != own[name]]:
        raise ValueError(f"{file.parent} has checkpoints of another run ({'; '.join(changed)}); choose another --output_dir")
