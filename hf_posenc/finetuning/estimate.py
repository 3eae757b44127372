"""What a run will take, measured on a real micro-batch before it begins."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import Trainer

from ..benchmarking import peak_bytes, seconds
from ..compat import CHECKPOINTING

PROBE = 256
"""Rows and columns of the parameter on which an optimizer shows what it keeps."""


@dataclass(frozen=True)
class Estimate:
    """Time and memory of a run, in each process.

    Args:
        rows, length: of a micro-batch, which has rows x length tokens.
        seconds: of its forward and backward pass, measured.
        micro_batches: how many of them are left to train on.
        weights: bytes of all parameters.
        working: bytes that torch held beside the weights at the peak of the two passes, gradients included, measured.
        optimizer: bytes that the optimizer keeps for the trained parameters.
    """

    rows: int
    length: int
    seconds: float
    micro_batches: int
    weights: int
    working: int
    optimizer: int

    def __str__(self) -> str:
        total = timedelta(seconds=round(self.seconds * self.micro_batches))
        tokens = self.rows * self.length
        parts = {"weights": self.weights, "gradients and activations": self.working, "optimizer": self.optimizer}
        listed = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in parts.items())
        return (
            f"estimate: {self.seconds:.2f} s for {self.rows} x {self.length:,} tokens, forward and backward "
            f"({tokens / self.seconds:,.0f} tokens/s), measured; x {self.micro_batches:,} = {total}, evaluations and saving apart\n"
            f"estimate: {sum(parts.values()) / 1e6:,.1f} MB at the peak ({listed})"
        )


def estimate(trainer: Trainer, done: int = 0) -> Estimate | None:
    """Measure one micro-batch of the training set, twice: memory first, time when all is warm.

    Weights, gradients, modes and random numbers are as before afterwards. Rows have the full block size, so under a schedule of lengths
    the time is an upper bound. None under FSDP and DeepSpeed, which cut the model up only when training starts.

    Args:
        trainer: not yet training, its model on its device.
        done: optimizer steps that an earlier run made.
    """
    args, model = trainer.args, cast(Any, trainer.model)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None
    with untouched(model):
        dataloader = trainer.get_train_dataloader()
        *_, max_steps = trainer.set_initial_training_values(args, dataloader)
        batch = first_batch(trainer, dataloader)
        checkpoint_activations(trainer)
        # From the second micro-batch of a step on, activations come on top of gradients.
        passes, device = min(2, args.gradient_accumulation_steps), str(args.device)
        working = peak_bytes(lambda: train_on(trainer, batch, passes), device)
        time = seconds(lambda: train_on(trainer, batch, passes), device) / passes
    rows, length = batch["input_ids"].shape
    return Estimate(
        rows=rows,
        length=length,
        seconds=time,
        micro_batches=max(0, max_steps - done) * args.gradient_accumulation_steps,
        weights=sum(p.numel() * p.element_size() for p in model.parameters()),
        working=working,
        optimizer=optimizer_bytes(trainer),
    )


def first_batch(trainer: Trainer, dataloader: Any) -> dict[str, torch.Tensor]:
    """The first rows of the training set, as they are collated for training, on the device of the Trainer."""
    rows: Any = trainer.train_dataset
    count = min(trainer.args.per_device_train_batch_size, len(rows))
    batch = dataloader.collate_fn([rows[index] for index in range(count)])
    return {name: column.to(trainer.args.device) for name, column in batch.items()}


def checkpoint_activations(trainer: Trainer) -> None:
    """What the Trainer does first when it trains, where it was asked to checkpoint activations."""
    if getattr(trainer.args, CHECKPOINTING):
        options = dict(getattr(trainer.args, f"{CHECKPOINTING}_kwargs") or {})
        which = {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
        getattr(trainer.model, f"{CHECKPOINTING}_enable")(**{f"{CHECKPOINTING}_kwargs": options or None}, **which)


def train_on(trainer: Trainer, batch: dict[str, torch.Tensor], passes: int) -> None:
    """Forward and backward of one batch, a few times, from no gradients to no gradients."""
    model = cast(Any, trainer.model)
    for _ in range(passes):
        with trainer.accelerator.autocast():
            loss = cast(torch.Tensor, trainer.compute_loss(model, dict(batch)))
        loss.backward()
    model.zero_grad(set_to_none=True)


def optimizer_bytes(trainer: Trainer) -> int:
    """Bytes that the optimizer of the run will keep."""
    counts: dict[torch.dtype, int] = {}
    for p in cast(nn.Module, trainer.model).parameters():
        counts[p.dtype] = counts.get(p.dtype, 0) + p.numel() * p.requires_grad
    return round(sum(state_bytes(trainer, dtype) * count for dtype, count in counts.items()))


def state_bytes(trainer: Trainer, dtype: torch.dtype) -> float:
    """Bytes that the optimizer of the run keeps for each number of a parameter, seen on a small one; 0 where it needs the real model."""
    kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, cast(Any, trainer.model))
    if "optimizer_dict" in options or "params" in options:
        return 0.0
    probe = nn.Parameter(torch.zeros(PROBE, PROBE, dtype=dtype, device=trainer.args.device))
    probe.grad = torch.zeros_like(probe)
    optimizer = kind([probe], **options)
    optimizer.step()
    kept = [value for value in optimizer.state[probe].values() if isinstance(value, torch.Tensor)]
    return sum(value.nbytes for value in kept if value.ndim) / probe.numel()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """The model in training mode, and random numbers to be drawn, for the length of the block; all is as before afterwards."""
    modes, python, numpy = [(module, module.training) for module in model.modules()], random.getstate(), np.random.get_state()
    model.train()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, training in modes:
            module.training = training
