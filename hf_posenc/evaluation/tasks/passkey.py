"""Passkey retrieval (Mohtashami and Jaggi 2023)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import cycle, islice
from typing import ClassVar, Literal

from .base import Answer, Question, Task, register
from .context import Stream
from .scores import numbers_in_order
from .words import NOISE, text_of

INSTRUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
NAMES = (
    *("Athens", "Berlin", "Cairo", "Dublin", "Geneva", "Hanoi", "Istanbul", "Jakarta", "Kyoto", "Lisbon", "Madrid", "Nairobi"),
    *("Oslo", "Paris", "Quito", "Rome", "Sydney", "Tokyo", "Vienna", "Warsaw"),
)
DISTRACTIONS = ("zip code", "room number", "order number", "flight number", "page number", "phone extension", "street number", "bus line")


@register("passkey")
@dataclass(frozen=True)
class PasskeyTask(Task):
    """Finding a number in filler (Mohtashami and Jaggi 2023, arXiv 2305.16300, section 4.2).

    A prompt is an instruction, filler, "The pass key is 58231. Remember it. 58231 is the pass key.", filler, the question and the
    answer. It follows from the task, the tokenizer, the length, the depth and the number of the trial, and from nothing else.

    Differs from the paper: all keys have the same number of digits, and the length counts tokens, those of the answer included.

    Args:
        digits: of every number.
        needles: how many pass keys there are; several have names.
        ask: for "one", that at the depth of the prompt, or for "all" of them, this one first. The others lie anywhere.
        distractors: how many numbers of other kinds lie anywhere, in sentences of the same form.
        filler: "grass" (the sentences of the paper), "essay" (`embedded_corpus`) or the path of a UTF-8 text.

    Raises:
        ValueError: a number out of its range.
    """

    benchmark: ClassVar[str] = "passkey"
    by_depth: ClassVar[bool] = True

    digits: int = 5
    needles: int = 1
    ask: Literal["one", "all"] = "one"
    distractors: int = 0
    filler: str = "grass"

    def __post_init__(self) -> None:
        if self.ask not in ("one", "all"):
            raise ValueError(f"ask must be 'one' or 'all', got {self.ask!r}")
        if not 1 <= self.needles <= len(NAMES):
            raise ValueError(f"needles must be 1 to {len(NAMES)}, got {self.needles}")
        if self.digits < 1 or self.distractors < 0:
            raise ValueError(f"digits must be at least 1 and distractors at least 0, got {self.digits} and {self.distractors}")
        if self.needles + self.distractors > len(self.numbers):
            raise ValueError(f"{self.needles + self.distractors} different numbers need more than {self.digits} digits")

    @property
    def name(self) -> str:
        return "passkey"

    @property
    def source(self) -> str:
        return self.benchmark

    @property
    def budget(self) -> int:
        return 0

    @property
    def numbers(self) -> range:
        """All numbers with that many digits."""
        return range(10 ** (self.digits - 1), 10**self.digits)

    def material(self) -> str:
        return f" {(NOISE if self.filler == 'grass' else text_of(self.filler)).strip()}"

    def question(self, length: int, depth: float | None, trial: int) -> Question:
        chance = self.chance(depth, trial)
        depth = chance.random() if depth is None else depth
        count = self.needles + self.distractors
        keys = ["pass key"] if self.needles == 1 else [f"pass key of {name}" for name in chance.sample(NAMES, self.needles)]
        things = [*keys, *islice(cycle(chance.sample(DISTRACTIONS, len(DISTRACTIONS))), self.distractors)]
        facts = [*zip(things, map(str, chance.sample(self.numbers, count)), strict=True)]
        depths, start = (depth, *(chance.random() for _ in range(count - 1))), chance.random()
        asked = facts[: self.needles if self.ask == "all" else 1]
        leads = ["", *(f". The {thing} is" for thing, _ in asked[1:])]
        return Question(
            before=INSTRUCTION,
            context=Stream(
                self.material(),
                start,
                tuple(f"\nThe {thing} is {number}. Remember it. {number} is the {thing}.\n" for thing, number in facts),
                depths,
            ),
            after=f"\nWhat is {' and '.join(f'the {thing}' for thing, _ in asked)}?",
            prefix=f" The {asked[0][0]} is",
            answers=tuple(Answer(lead, number) for lead, (_, number) in zip(leads, asked, strict=True)),
            references=tuple(number for _, number in asked),
        )

    def chance(self, depth: float | None, trial: int) -> random.Random:
        return random.Random(f"{self.seed} {depth if depth is None else format(depth, 'g')} {trial}")

    def score(self, said: str, references: tuple[str, ...], question: str) -> float:
        return numbers_in_order(said, references)
