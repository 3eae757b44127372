"""The attention functions of transformers, called as if nothing had been patched."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .choice import FLASH
from .masks import Mask
from .structured import written


class Seen:
    """`target`, but for some attributes: those of a module and its configuration that a stock function must not see as they are."""

    def __init__(self, target: Any, **attributes: Any):
        self.__dict__.update(attributes)
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def attention(
    backend: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Mask, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Output [B,Q,H,V] of the function that transformers has for `backend`."""
    if backend in FLASH:  # which load their kernels by what the configuration calls them
        module = Seen(module, config=Seen(module.config, _attn_implementation=backend))  # type: ignore[assignment]
    return ALL_ATTENTION_FUNCTIONS[backend](module, query, key, value, written(mask), **kwargs)
