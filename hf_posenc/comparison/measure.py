"""What a trained model is tested for: nats at each context length, and by position."""

from __future__ import annotations

from typing import Any

import torch

from ..training import window_nll
from ..training.lengths import by_range, cut_windows, position_nll
from .base import has_position


def nats_by_length(model: Any, ids: torch.Tensor, lengths: list[int]) -> dict[int, float | None]:
    """Mean nats of a prediction at each context length, protocol `disjoint`; None where the encoding is not defined."""
    return {length: window_nll(model, ids, length)[0] if has_position(model, length - 1) else None for length in lengths}


def nats_by_position(model: Any, ids: torch.Tensor, length: int) -> list[tuple[int, int, float]]:
    """Mean nats of the predictions made at each distance from the beginning of a window of `length` tokens, as `by_range` has them.

    Args:
        ids: [T] tokens, cut into consecutive windows.
    """
    windows = cut_windows(ids, length)
    return by_range(position_nll(model, windows) / len(windows))
