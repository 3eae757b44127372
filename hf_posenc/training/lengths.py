"""The loss at several lengths, and the callback that logs it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.nn import functional as F

from ..evaluation.corpus import CorpusError
from ..evaluation.token_nll import evaluating, exp, find_head, input_device, token_nll
from .logged import Logged
from .loss import is_chunked, transformers_model

LOGITS_AT_ONCE = 1 << 26


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
    return summed_nll(model, windows) / predictions, predictions


def cut_windows(ids: torch.Tensor, length: int, max_windows: int | None = None) -> torch.Tensor:
    """The first windows [N, length] of ids [T]; CorpusError where there is not one."""
    count = min(len(ids) // length, max_windows or len(ids))
    if count == 0:
        raise CorpusError(f"the evaluation text has {len(ids):,} tokens, fewer than one window of {length:,}")
    return ids[: count * length].view(count, length)


def summed_nll(model: Any, windows: torch.Tensor) -> float:
    """Nats of all predictions within windows [N, L]; 0 for no window."""
    at_once = max(1, LOGITS_AT_ONCE // (windows.shape[1] * model.config.get_text_config().vocab_size))
    with evaluating(model):
        return sum(_batch_nll(model, batch) for batch in windows.to(input_device(model)).split(at_once) if len(batch))


def _batch_nll(model: Any, batch: torch.Tensor) -> float:
    """Summed nats of a batch of windows [B,L]; a single long window goes through the chunked output layer."""
    if is_chunked(transformers_model(model)):  # inside the model's own forward, where FSDP gathers its weights
        return model(input_ids=batch, labels=batch, use_cache=False).loss.item() * batch[:, 1:].numel()
    if len(batch) == 1:
        return token_nll(model, batch[0], find_head(model, batch[0])).double().sum().item()
    logits = model(batch, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()


class LengthEvaluation(Logged):
    """Logs `eval_nll@L` at several lengths L whenever the Trainer evaluates, and at the end.

    Unlike `eval_loss` they are weighted by token, not by batch. Several processes share the windows, and each gets the same numbers.

    Args:
        ids: [T] token ids to evaluate on.
        lengths: context lengths in tokens.
        max_windows: windows at each length; by default as many as there are, so that every length scores the same text.
    """

    def __init__(self, ids: torch.Tensor, lengths: Sequence[int], max_windows: int | None = None):
        super().__init__()
        self.ids, self.lengths, self.max_windows = ids, sorted(lengths), max_windows

    def measure(self, model: Any) -> dict[str, float]:
        """nats at each length, under the names they are logged by.

        Raises:
            FloatingPointError: one of them is NaN or infinite, in all processes.
        """
        found = {f"eval_nll@{length}": self._nats(model, length) for length in self.lengths}
        if broken := [f"{name} is {nats}" for name, nats in found.items() if not math.isfinite(nats)]:
            raise FloatingPointError(
                f"after {self.trainer.state.global_step} steps {', '.join(broken)}: the weights or the activations have overflowed; "
                "lower the learning rate, clip gradients, or train in float32 or bfloat16"
            )
        return found

    def _nats(self, model: Any, length: int) -> float:
        """The mean over the windows of all processes, of which this one takes its share."""
        windows, accelerator = cut_windows(self.ids, length, self.max_windows), self.trainer.accelerator
        mine = windows[accelerator.process_index :: accelerator.num_processes]
        return sum(gather_object([summed_nll(model, mine)])) / (len(windows) * (length - 1))


def perplexities(nats: Iterable[float]) -> list[float]:
    """exp of each, infinite where it overflows."""
    return [exp(n) for n in nats]
