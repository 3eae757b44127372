"""Counting along a text, from where its parts begin."""

from __future__ import annotations

import torch
from torch import Tensor


def since(first: Tensor, before: Tensor) -> Tensor:
    """Tokens [B,Q] since the last that is `first` [B,Q]; `before` [B] of the token before them, from which the others go on."""
    place = torch.arange(first.shape[1], device=first.device).expand_as(first)
    start = torch.where(first, place, -1 - before.clamp(min=-1)[:, None])
    return place - start.cummax(1).values
