"""Any encoding of the attention, and one of the embeddings at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..base import ENCODINGS, Geometry, PositionalEncoding, Text, create
from ..naming import EMBEDDING, OVERRIDABLE
from .made import Composed, named, within

OPTION = "embedding"
BESIDE = ("notes",)
"""What an encoding of the embeddings may do beside them: keep numbers of the tokens that it has seen."""


class Embedded(Composed):
    """Around an encoding: `beside` acts on the embeddings."""

    beside: PositionalEncoding

    def project(self) -> None:
        super().project()
        self.beside.project()

    def check_positions(self, last: int) -> None:
        super().check_positions(last)
        self.beside.check_positions(last)


class EmbeddedPositions(Embedded):
    """By their positions."""

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        return self.beside.embed(x, pos)


class EmbeddedText(Embedded):
    """By the tokens."""

    def embed_text(self, x: Tensor, text: Text) -> Tensor:
        return self.beside.embed_text(x, text)

    def notes(self, text: Text) -> Tensor:
        return self.beside.notes(text)


def embedded(value: Any, name: str, geometry: Geometry, options: dict[str, Any]) -> PositionalEncoding:
    """The encoding `name` with one of the embeddings: a name, or {"name": ...} with its options.

    Raises:
        ValueError: it is none, or acts in the attention too; `name` acts on the embeddings itself, or reads tokens.
    """
    asked, own = named(OPTION, value)
    beside: Any = create(asked, geometry, **own)
    if not _only_embeds(type(beside)):
        known = ", ".join(each for each in ENCODINGS if _only_embeds(ENCODINGS[each]))
        raise ValueError(f"{OPTION}={beside.name!r} does not act on the embeddings, or not on them alone. There are {known}")
    encoding: Any = create(name, geometry, **options)
    if encoding.has(*EMBEDDING, "notes", "locate"):
        raise ValueError(f"{name!r} acts on the embeddings, or reads tokens, itself: it takes no {OPTION}=")
    by_text = beside.has("embed_text")
    outer, any_length = EmbeddedText if by_text else EmbeddedPositions, encoding.any_length and beside.any_length
    encoding = within([outer], encoding, noted=beside.noted, any_length=any_length)
    encoding.beside = beside
    return encoding


def _only_embeds(cls: type[PositionalEncoding]) -> bool:
    return cls.has(*EMBEDDING) and not any(cls.has(stage) for stage in OVERRIDABLE if stage not in (*EMBEDDING, *BESIDE))
