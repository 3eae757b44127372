"""What a run measures for its report: the model as it was loaded, before the first step, and after the last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainerCallback

import hf_posenc

from ..evaluation.corpus import SHORT
from ..evaluation.token_nll import input_device
from ..files import write_atomically
from ..training import LengthEvaluation, window_nll
from ..training.lengths import by_range
from ..variants import STOCK
from .arguments import Settings
from .checkpoints import last_checkpoint

NUMBERS, PAGE = "report.json", "report.html"
PARTS = 4
"""Ranges of positions in each doubling."""
SHORT_TEXTS = 4


class Record(TrainerCallback):
    """Keeps in `report.json` what is measured beside the numbers in the log: nats by position and on short texts.

    The nats by position are those of the evaluation at the longest length, whose every token is scored anyway. A run that goes on from a
    checkpoint has what was measured before its first step.

    Args:
        settings: of the run.
        ids: [T] held-out tokens; the first of them are cut into short texts.
    """

    def __init__(self, settings: Settings, ids: torch.Tensor):
        self.settings, self.ids, self.file = settings, ids, settings.output / NUMBERS
        self.description, self.native = "", 0
        self.evaluation: Any = None
        self.brief: Any = None
        self.found: dict[str, Any] = {}
        if last_checkpoint(settings) is not None and self.file.is_file():
            self.found = json.loads(self.file.read_text(encoding="utf-8"))

    def look(self, model: Any) -> None:
        """See the model as it was loaded, before it is patched: what the patch costs on short texts shows beside it."""
        self.native = hf_posenc.inspect(model).context_length
        short = max(2, min(SHORT, self.native // 2, self.settings.eval_lengths[-1]))
        self.brief = LengthEvaluation(self.ids[: short * SHORT_TEXTS], [short])
        training = self.settings.training
        cut_up = training.fsdp or training.deepspeed or any(map(parse_flag_from_env, ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")))
        patched = self.settings.encoding.encoding != STOCK
        if patched and training.eval_on_start and not cut_up and "as loaded" not in self.found:
            half = torch.float16 if training.fp16 else torch.bfloat16
            with on(model, training.device), torch.autocast(training.device.type, half, enabled=training.fp16 or training.bf16):
                self.found["as loaded"] = {"short": window_nll(model, self.brief.ids, short)[0]}

    def attach(self, trainer: Any, evaluation: LengthEvaluation, description: str) -> None:
        """Listen to `trainer`, behind the evaluation; the report has the description of what is trained."""
        self.evaluation, self.description = evaluation, description
        self.brief.trainer = trainer
        trainer.add_callback(self)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self._keep("before", model)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self._keep("after", model)

    def _keep(self, when: str, model: Any) -> None:
        trainer = self.brief.trainer
        (short,) = self.brief.measure(trainer.accelerator.unwrap_model(model)).values()
        self.found |= {"length": self.evaluation.lengths[-1], "short_length": self.brief.lengths[0], "short_tokens": len(self.brief.ids)}
        self.found[when] = {"short": short, "by_position": by_range(self.evaluation.by_position, PARTS)}
        if trainer.is_world_process_zero():
            write_atomically(self.file, json.dumps(self.found, indent=1))


@contextmanager
def on(model: Any, device: torch.device) -> Iterator[None]:
    """The model on a device for the length of the block, but where its parts have been given their places."""
    home = input_device(model)
    if device != home and not hasattr(model, "hf_device_map"):
        model.to(device)
    try:
        yield
    finally:
        if input_device(model) != home:
            model.to(home)
