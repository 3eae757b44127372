"""What stands in the native slot of a family: other frequencies in its own rotary module, or zeros where a table was."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..encodings import PositionalEncoding

Group = str | None
"""Layers that share one set of native rotary frequencies: a layer type where `rope_parameters` is nested, else None."""


class NoEncoding(nn.Module):
    """What is in the slot of a family that has none."""


class RotarySlot(nn.Module):
    """The family's own rotary module with other frequencies in it: its pair layout, its dtype rules, its interface."""

    def __init__(self, native: nn.Module, contents: dict[Group, PositionalEncoding | None]):
        super().__init__()
        self.rotary: Any = copy.deepcopy(native)
        self.contents = contents
        self.refresh_slot()

    def refresh_slot(self) -> None:
        """Write the frequencies again, in float32, on the device of the module."""
        for group in self.contents:
            prefix = _prefix(group)
            old, (frequencies, factor) = getattr(self.rotary, f"{prefix}inv_freq"), self._put_in(group)
            device = "cpu" if old.is_meta else old.device
            for name in ("inv_freq", "original_inv_freq"):
                buffer: Any = frequencies.to(device, torch.float32, copy=True)
                buffer._is_hf_initialized = True  # else `_init_weights` of the model would write its own frequencies here
                self.rotary.register_buffer(prefix + name, buffer, persistent=False)
            setattr(self.rotary, f"{prefix}attention_scaling", factor)
            if group:
                self.rotary.rope_type = self.rotary.rope_type | {group: "default"}
            else:
                self.rotary.rope_type = "default"
                self.rotary.compute_default_rope_parameters = Held(frequencies, factor)

    def is_whole(self) -> bool:
        """Whether the module still holds what was put into it."""
        states = [(rotary_state(self.rotary, group), self._put_in(group)) for group in self.contents]
        return all(torch.equal(live[0], put[0].to(live[0])) and live[1] == put[1] for live, put in states)

    def _put_in(self, group: Group) -> tuple[Tensor, float]:
        """The frequencies of a group, and the factor on cos and sin."""
        encoding = self.contents[group]
        held = encoding.frequencies() if encoding is not None else None
        return held or (torch.zeros(len(getattr(self.rotary, f"{_prefix(group)}inv_freq"))), 1.0)

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        self.refresh_slot()
        return self

    def forward(self, *args, **kwargs):
        return self.rotary(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What a family asks its rotary module for, beside calling it (a configuration, layer types)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "rotary":  # an instance that is still being made
                raise
            return getattr(self.rotary, name)


class Held:
    """What transformers is to compute for a rotary module when it fills in a model that it loads: what the module holds."""

    def __init__(self, frequencies: Tensor, factor: float):
        self.frequencies, self.factor = frequencies.detach(), factor

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, float]:
        return torch.zeros_like(self.frequencies, device="cpu") if self.frequencies.is_meta else self.frequencies.clone(), self.factor


def _prefix(group: Group) -> str:
    """What transformers puts before the names of a group's frequencies and factor."""
    return f"{group}_" if group else ""


def rotary_state(rotary: nn.Module, group: Group) -> tuple[Tensor, float]:
    """Inverse frequencies [r/2] float32 on the CPU, and the factor on cos and sin, of a transformers rotary module."""
    prefix = _prefix(group)
    frequencies = getattr(rotary, f"{prefix}inv_freq").detach().to("cpu", torch.float32)
    return frequencies, float(getattr(rotary, f"{prefix}attention_scaling"))


class ZeroTable(nn.Module):
    """Stands where a table of `width` columns stood, and adds nothing, in the dtype of its model."""

    def __init__(self, width: int, dtype: torch.dtype):
        super().__init__()
        self.width = width
        self._set(dtype)

    def _set(self, dtype: torch.dtype) -> None:
        zero: Any = torch.zeros((), dtype=dtype, device="cpu")
        zero._is_hf_initialized = True  # else `_init_weights` of some models would put numbers here
        self.weight = zero  # no parameter

    def _apply(self, fn, recurse: bool = True):
        self._set(fn(self.weight).dtype)
        return super()._apply(fn, recurse)

    def forward(self, *args, position_ids: Tensor | None = None, **kwargs) -> Tensor:
        """Zeros [...,width], for the indices [...] that rows are looked up by, or embeddings of that shape; they take no memory."""
        by = next(x for x in (position_ids, *args, *kwargs.values()) if isinstance(x, Tensor))
        zero = torch.zeros((), dtype=by.dtype if by.is_floating_point() else self.weight.dtype, device=by.device)
        return zero.expand(*(by.shape[:-1] if by.is_floating_point() and by.ndim > 2 else by.shape), self.width)
