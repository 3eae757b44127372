"""Where a family lets its attention be reached: what is asked of its configuration and modules, and what the proof looks at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..encodings import PositionalEncoding
from . import probe
from .choice import BIASABLE, FLASH, Asked, Choice, choose
from .entry import PREFIX
from .probe import Handed


class Interface:
    """transformers' attention interface: a patched model says that its attention implementation is ours."""

    def __str__(self) -> str:
        return "the attention interface"

    scores: tuple[str, ...] = BIASABLE
    """Backends through which scores can be changed."""
    flash: tuple[str, ...] = FLASH
    """Backends that leave the scores alone, or take wider keys."""

    def implementation(self, backend: str) -> str:
        """What the configuration of a patched model says where the user chose `backend`."""
        return PREFIX + backend

    def tried_with(self, backend: str) -> str:
        """The backend of a proof, where the user chose `backend`."""
        return "eager"

    def hook(self, attention: nn.Module) -> list[Any]:
        """Make `attention` do what its `posenc_site` says; handles that undo it."""
        return []

    def around(self, hook: Any) -> Any:
        """`hook`, for the backbone around such attention modules."""
        return hook

    def check(self, encoding: PositionalEncoding) -> None:
        """Raise ValueError if `encoding` cannot act here."""

    def choose(self, encoding: PositionalEncoding, asked: Asked) -> Choice:
        """The way that a call takes."""
        return choose(encoding, asked)

    @contextmanager
    def looking(self, config: Any, attentions: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Handed]]:
        """What each attention module hands over within the block, in which none attends to anything."""
        before = config._attn_implementation
        config._attn_implementation = probe.NAME
        try:
            with probe.looking() as seen:
                yield seen
        finally:
            config._attn_implementation = before
