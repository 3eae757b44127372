"""The positions of the forward pass that a backbone is in, for those attention modules to which the family does not hand them down."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


class _Now(threading.local):
    """The positions that a thread works on, by what they were left in."""

    def __init__(self) -> None:
        self.pos: WeakKeyDictionary[Settled, Tensor] = WeakKeyDictionary()


_now = _Now()


class Settled:
    """One for each patched backbone, shared by what the patch has put into it. Each thread sees the forward pass that it runs.

    Args:
        handed: what layers are handed as position ids are positions.
    """

    traced: Tensor | None = None
    """In place of what a thread sees, while a forward pass is traced."""

    def __init__(self, handed: bool = True):
        self.handed = handed

    @property
    def pos(self) -> Tensor | None:
        """Positions [1 or B,Q] of the tokens; None outside of a forward pass."""
        return self.traced if torch.compiler.is_compiling() else _now.pos.get(self)

    @pos.setter
    def pos(self, pos: Tensor | None) -> None:
        if torch.compiler.is_compiling():
            self.traced = pos
        elif pos is None:
            _now.pos.pop(self, None)
        else:
            _now.pos[self] = pos

    def of(self, arguments: Mapping[str, Any]) -> Tensor:
        """The positions among the arguments of an attention module, or those of the backbone."""
        given = arguments.get("position_ids") if self.handed else None
        pos = given if isinstance(given, Tensor) and given.ndim < 3 else self.pos
        if pos is None:
            raise RuntimeError(
                "a patched layer runs outside of the forward pass of its backbone, which alone knows the positions: call the model, "
                "and checkpoint activations with model.gradient_checkpointing_enable()"
            )
        return pos

    @contextmanager
    def at(self, pos: Tensor | None) -> Iterator[None]:
        """A block in which the positions are these."""
        before, self.pos = self.pos, pos
        try:
            yield
        finally:
            self.pos = before


class Forget:
    """After a backbone has run: its positions are no longer known."""

    def __init__(self, settled: Settled):
        self.settled = settled

    def __call__(self, *_: Any) -> None:
        self.settled.pos = None


class Remember:
    """In the place of a layer's function for gradient checkpointing: when the layer runs again, it finds the positions of its first run."""

    def __init__(self, checkpoint: Callable[..., Any], settled: Settled):
        self.checkpoint, self.settled = checkpoint, settled

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.checkpoint(Again(function, self.settled, self.settled.pos), *args, **kwargs)

    @classmethod
    def put_in(cls, backbone: nn.Module, settled: Settled) -> None:
        """Into each layer of `backbone` that is checkpointed now and has none yet."""
        for module in backbone.modules():
            function = module.__dict__.get("_gradient_checkpointing_func")
            if function is not None and not isinstance(function, cls):
                module.__dict__["_gradient_checkpointing_func"] = cls(function, settled)

    @classmethod
    def take_out(cls, backbone: nn.Module) -> None:
        for module in backbone.modules():
            function = module.__dict__.get("_gradient_checkpointing_func")
            if isinstance(function, cls):
                module.__dict__["_gradient_checkpointing_func"] = function.checkpoint


class Again:
    """A layer, at the positions of its first run."""

    def __init__(self, function: Callable[..., Any], settled: Settled, pos: Tensor | None):
        self.function, self.settled, self.pos = function, settled, pos

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.settled.at(self.pos):
            return self.function(*args, **kwargs)
