"""What a trained model is tested for: nats at each context length, and by position."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from ..evaluation.token_nll import evaluating, find_head, token_nll
from ..training import window_nll
from .base import has_position

FIRST_BUCKET = 16


def nats_by_length(model: Any, ids: torch.Tensor, lengths: list[int]) -> dict[int, float | None]:
    """Mean nats of a prediction at each context length, protocol `disjoint`; None where the encoding is not defined."""
    return {length: window_nll(model, ids, length)[0] if has_position(model, length - 1) else None for length in lengths}


def nats_by_position(model: Any, ids: torch.Tensor, length: int) -> list[tuple[int, int, float]]:
    """Mean nats of the predictions made at each distance from the beginning of a window of `length` tokens.

    Args:
        ids: [T] tokens, cut into consecutive windows.

    Returns:
        (start, stop, nats): the predicted tokens start ... stop - 1 of all windows, in ranges that double: 1 ... 15, 16 ... 31 and so on.
    """
    windows = ids[: len(ids) // length * length].view(-1, length)
    head = find_head(model, windows[0])
    with evaluating(model):
        nats = torch.stack([token_nll(model, window, head).double() for window in windows]).mean(0)
    edges = [1, *(FIRST_BUCKET << step for step in range(length.bit_length()) if FIRST_BUCKET << step < length), length]
    return [(start, stop, nats[start - 1 : stop - 1].mean().item()) for start, stop in pairwise(edges)]
