"""Saying what encodings there are, and for which models."""

from __future__ import annotations

import dataclasses
import inspect as python_inspect
from typing import Any

from .encodings import ENCODINGS, options_of
from .encodings.naming import STAGES


def list_encodings() -> list[str]:
    """Names of all registered encodings, sorted."""
    return list(ENCODINGS)


def list_model_types() -> list[str]:
    """Model types of transformers that can be patched, sorted: what `config.model_type` says, or that of the decoder of text within it."""
    from .architectures import ARCHITECTURES

    return list(ARCHITECTURES)


@dataclasses.dataclass(frozen=True)
class Description:
    """What an encoding is: its class, documentation, options with defaults, stages and static properties."""

    name: str
    title: str
    documentation: str
    options: dict[str, Any]
    stages: tuple[str, ...]
    relative: bool
    caches: str
    any_length: bool
    needs_training: str

    def __str__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self.options.items()) or "none"
        facts = [
            f"options: {options}",
            f"acts on: {', '.join(self.stages) or 'nothing'}",
            f"score depends only on distance: {'yes' if self.relative else 'no'}",
            f"cached key: {self.caches}",
            f"defined at any position: {'yes' if self.any_length else 'no'}",
            f"needs training: {self.needs_training or 'no'}",
        ]
        return "\n".join([f"{self.name} ({self.title})", "", self.documentation, "", *facts])


def describe(name: str) -> Description:
    """What the encoding `name` is and takes.

    Raises:
        ValueError: no such encoding.
    """
    cls = ENCODINGS[name]
    return Description(
        name=name,
        title=cls.__name__,
        documentation=python_inspect.getdoc(cls) or "",
        options=options_of(cls),
        stages=tuple(stage for stage in STAGES if cls.has(stage)),
        relative=cls.relative,
        caches=cls.caches,
        any_length=cls.any_length,
        needs_training=cls.needs_training,
    )
