"""HELMET's recall of values from a JSON object (Yen et al. 2024; Liu et al. 2023)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from .base import Answer, Question, Task, register
from .haystack import Haystack, with_first_at
from .scores import value_found
from .words import uuid

SHOTS = 2


@register("json_kv")
@dataclass(frozen=True)
class JsonKv(Task):
    """The value of a key among pairs of UUIDs, after two others as examples (arXiv 2410.02694; princeton-nlp/HELMET, `load_json_kv`).

    Differs from HELMET: the pairs are drawn here, and the context is the bare object, as Liu et al. write it, where HELMET takes its own
    from files; the last pair is cut so that the tokens are exactly those asked for.
    """

    benchmark: ClassVar[str] = "HELMET"
    by_depth: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "json_kv"

    @property
    def budget(self) -> int:
        return 100

    def question(self, length: int, depth: float | None, trial: int) -> Question:
        chance = self.chance(depth, trial)
        (key, value), *shots = [(uuid(chance), uuid(chance)) for _ in range(1 + SHOTS)]
        first, *depths = [chance.random() for _ in range(1 + SHOTS)]
        others = random.Random(chance.random())
        placed = with_first_at(first if depth is None else depth, record(key, value), [record(*shot) for shot in shots], depths)
        shown = "".join(f"Key: {known}\nCorresponding value: {told}\n\n" for known, told in shots)
        return Question(
            before="{",
            context=Haystack(lambda index: record(uuid(others), uuid(others)), placed, ",\n ").context(),
            after=f"}}\n\nExtract the value corresponding to the specified key in the JSON object below.\n\n{shown}Key: {key}",
            prefix="\nCorresponding value:",
            answers=(Answer("", value),),
            references=(value,),
        )

    def score(self, said: str, references: tuple[str, ...], question: str) -> float:
        return value_found(said, references, "corresponding value:")


def record(key: str, value: str) -> str:
    """A pair as JSON has it."""
    return f'"{key}": "{value}"'
