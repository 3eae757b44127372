"""The loss at several lengths, and the callback that logs it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.nn import functional as F

from ..evaluation.corpus import CorpusError
from ..evaluation.token_nll import evaluating, exp, find_head, input_device, token_nll
from .logged import Logged
from .loss import is_chunked, transformers_model

LOGITS_AT_ONCE = 1 << 26
FIRST_RANGE = 16
"""Tokens of the first range of positions, and of the smallest."""


def window_nll(model: Any, ids: torch.Tensor, length: int, max_windows: int | None = None) -> tuple[float, int]:
    """Mean nats per predicted token over consecutive windows that share no token, every token weighted equally.

    Args:
        model: a causal language model; its mode (train, eval) is restored.
        ids: [T] token ids.
        length: tokens in a window, of which length - 1 are predicted.
        max_windows: use the first so many.

    Returns:
        nats, and the number of predictions.

    Raises:
        CorpusError: the text is shorter than one window.
    """
    windows = cut_windows(ids, length, max_windows)
    predictions = len(windows) * (length - 1)
    return position_nll(model, windows).sum().item() / predictions, predictions


def cut_windows(ids: torch.Tensor, length: int, max_windows: int | None = None) -> torch.Tensor:
    """The first windows [N, length] of ids [T]; CorpusError where there is not one."""
    count = min(len(ids) // length, max_windows or len(ids))
    if count == 0:
        raise CorpusError(f"the evaluation text has {len(ids):,} tokens, fewer than one window of {length:,}")
    return ids[: count * length].view(count, length)


def position_nll(model: Any, windows: torch.Tensor) -> torch.Tensor:
    """Nats [L - 1] of the predictions at each position of windows [N, L], summed over the windows, in float64; 0 for no window."""
    at_once = max(1, LOGITS_AT_ONCE // (windows.shape[1] * model.config.get_text_config().vocab_size))
    summed = torch.zeros(windows.shape[1] - 1, dtype=torch.float64)
    with evaluating(model):
        for batch in windows.to(input_device(model)).split(at_once):
            summed += _batch_nll(model, batch).sum(0, dtype=torch.float64).cpu() if len(batch) else 0.0
    return summed


def _batch_nll(model: Any, batch: torch.Tensor) -> torch.Tensor:
    """Nats [B, L - 1] of a batch of windows [B, L]; a single long window goes through the chunked output layer."""
    if is_chunked(transformers_model(model)):  # inside the model's own forward, where FSDP gathers its weights
        return model(input_ids=batch, labels=batch, use_cache=False, by_token=True).loss[:, :-1]
    if len(batch) == 1:
        return token_nll(model, batch[0], find_head(model, batch[0]))[None]
    logits = model(batch, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")


def by_range(nats: torch.Tensor, parts: int = 1) -> list[tuple[int, int, float]]:
    """Means of the nats [L - 1] of the predicted tokens 1 ... L - 1 in ranges that double.

    Args:
        parts: equal ranges in each doubling, where that leaves them at least 16 tokens.

    Returns:
        (start, stop, nats): the predicted tokens start ... stop - 1: 1 ... 15, 16 ... 31 and so on.
    """
    length = len(nats) + 1
    octaves = [FIRST_RANGE << octave for octave in range(length.bit_length())]
    edges = [edge for start in octaves for edge in range(start, 2 * start, max(FIRST_RANGE, start // parts)) if edge < length]
    return [(start, stop, nats[start - 1 : stop - 1].mean().item()) for start, stop in pairwise([1, *edges, length])]


class LengthEvaluation(Logged):
    """Logs `eval_nll@L` at several lengths L whenever the Trainer evaluates, and at the end.

    Unlike `eval_loss` they are weighted by token, not by batch. Several processes share the windows, and each gets the same numbers.
    `by_position` holds the nats [L - 1] of the last measurement at each position of the longest windows.

    Args:
        ids: [T] token ids to evaluate on.
        lengths: context lengths in tokens.
        max_windows: windows at each length; by default as many as there are, so that every length scores the same text.
    """

    def __init__(self, ids: torch.Tensor, lengths: Sequence[int], max_windows: int | None = None):
        super().__init__()
        self.ids, self.lengths, self.max_windows = ids, sorted(lengths), max_windows
        self.by_position = torch.zeros(0)

    @property
    def names(self) -> list[str]:
        return [f"eval_nll@{length}" for length in self.lengths]

    def measure(self, model: Any) -> dict[str, float]:
        """nats at each length, under the names they are logged by.

        Raises:
            FloatingPointError: one of them is NaN or infinite, in all processes.
        """
        with self.trainer.accelerator.autocast():  # a finished run is measured again without the wrapper that training gives its model
            nats = [self._nats(model, length) for length in self.lengths]
        self.by_position = nats[-1]
        found = {name: each.mean().item() for name, each in zip(self.names, nats, strict=True)}
        if broken := [f"{name} is {mean}" for name, mean in found.items() if not math.isfinite(mean)]:
            raise FloatingPointError(
                f"after {self.trainer.state.global_step} steps {', '.join(broken)}: the weights or the activations have overflowed; "
                "lower the learning rate, clip gradients, or train in float32 or bfloat16"
            )
        return found

    def _nats(self, model: Any, length: int) -> torch.Tensor:
        """The mean at each position over the windows of all processes, of which this one takes its share."""
        windows, accelerator = cut_windows(self.ids, length, self.max_windows), self.trainer.accelerator
        mine = windows[accelerator.process_index :: accelerator.num_processes]
        return torch.stack(gather_object([position_nll(model, mine)])).sum(0) / len(windows)


def perplexities(nats: Iterable[float]) -> list[float]:
    """exp of each, infinite where it overflows."""
    return [exp(n) for n in nats]
