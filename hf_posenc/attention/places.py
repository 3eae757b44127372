"""What the layers of a model that lies on several devices share: moved once for each device and forward pass, not for each layer."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor

from ..encodings import PositionalEncoding

COUNTED = "posenc_counted"
"""Attribute of positions that `positions.resolve` has counted: one apart from each token that the mask does not hide to the next."""
AXES = "posenc_axes"
"""Attribute of settled positions that holds the position ids of a call on their several axes."""
REAL = "posenc_real"
"""Attribute of settled positions [1 or B,Q] that says which of the tokens there are no padding, after the one before them: [B,1+Q] bool."""
HERE = "posenc_here"
"""Attribute of a tensor of position ids that holds the encodings as they are on its device."""


def follow(x: Any) -> Any:
    """`x`, a tensor of this forward pass alone, whose `to` makes one copy a device: accelerate asks before every layer, and by the
    tensors that they are handed layers know that they belong together."""
    if isinstance(x, Tensor) and not torch.compiler.is_compiling():
        vars(x)["to"] = _Copies(x)
    return x


class _Copies:
    def __init__(self, x: Tensor):
        self.original, self.made = weakref.ref(x), dict[torch.device, Tensor]()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        x = self.original()
        assert x is not None
        if len(args) != 1 or not isinstance(args[0], torch.device | str | int) or kwargs.keys() - {"non_blocking"}:
            return Tensor.to(x, *args, **kwargs)
        device = torch.device(args[0])
        if device == x.device:
            return x
        if device not in self.made:
            self.made[device] = Tensor.to(x, device)
            for name in {COUNTED, AXES, REAL} & vars(x).keys():
                value = vars(x)[name]
                setattr(self.made[device], name, value.to(device) if isinstance(value, Tensor) else value)
        return self.made[device]


def here(encoding: PositionalEncoding, pos: Tensor) -> PositionalEncoding:
    """`encoding` with its numbers on the device of `pos`, the position ids of a layer."""
    if torch.compiler.is_compiling():
        return _on(encoding, pos.device)
    known = vars(pos).setdefault(HERE, {})
    key = (encoding, torch.is_grad_enabled())
    if key not in known:
        known[key] = _on(encoding, pos.device)
    return known[key]


def placed(encoding: PositionalEncoding, pos: Tensor) -> Tensor:
    """The positions [1 or B,Q] that `encoding` asks about, [n,1 or B,Q] where it has several axes; text alone is alike on all of them.

    Raises:
        ValueError: the call has positions on fewer axes.
    """
    if encoding.axes == 1:
        return pos
    axes = getattr(pos, AXES, None)
    if axes is None:
        return pos[None].expand(encoding.axes, -1, -1)
    if len(axes) < encoding.axes:
        raise ValueError(f"{encoding.name!r} has {encoding.axes} axes, but position_ids have {len(axes)}: give them as [axes,batch,tokens]")
    return axes[-encoding.axes :].to(pos.device)


def _on(module: Any, device: torch.device) -> Any:
    if all(x.device == device for x in (*module.parameters(), *module.buffers())):
        return module
    there = copy.copy(module)
    with align_module_device(module):  # fetches what accelerate has offloaded
        for name in ("_parameters", "_buffers"):
            vars(there)[name] = {key: None if x is None else x.to(device) for key, x in vars(module)[name].items()}
    there._modules = {key: child and _on(child, device) for key, child in module._modules.items()}
    return there
