"""Autocast, which rounds what goes into every product: the numbers of an encoding too."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager:
    """A block in which numbers on `device` are multiplied in the dtype that they have."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available and torch.is_autocast_enabled(device.type) else nullcontext()
