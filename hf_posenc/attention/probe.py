"""An attention that attends to nothing and remembers what it was handed: what reaches the attention of each layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from .entry import PREFIX

NAME = f"{PREFIX}probe"


class Handed(NamedTuple):
    """Queries [B,H,Q,D], keys [B,G,Q,D] and values [B,G,Q,V] that an attention module hands over.

    Where the module does the rest itself: the weights [B,H,Q,Q] that it makes of them, and the factor on the products by its description.
    """

    query: Tensor
    key: Tensor
    value: Tensor | None = None
    weights: Tensor | None = None
    scaling: float = 1.0


_seen: ContextVar[dict[nn.Module, Handed] | None] = ContextVar("posenc_probe", default=None)


@contextmanager
def looking() -> Iterator[dict[nn.Module, Handed]]:
    """What each attention module hands over within the block: to `probe`, where the attention implementation is `NAME`, or to `see`."""
    seen: dict[nn.Module, Handed] = {}
    token = _seen.set(seen)
    try:
        yield seen
    finally:
        _seen.reset(token)


def is_looking() -> bool:
    return _seen.get() is not None


def see(module: nn.Module, handed: Handed) -> None:
    """Remember what `module` has handed over first."""
    seen = _seen.get()
    assert seen is not None
    seen.setdefault(module, handed)


def probe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs) -> tuple[Tensor, None]:
    """Output [B,Q,H,V] of zeros: without attention, a layer sees each token alone, whatever the layers before it do with positions."""
    see(module, Handed(query, key, value))
    return value.new_zeros(len(query), query.shape[2], query.shape[1], value.shape[-1]), None


AttentionInterface.register(NAME, probe)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
