"""RULER's variable tracking (Hsieh et al. 2024)."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from typing import ClassVar

from .base import Answer, Question, Task, register
from .haystack import Haystack, in_order
from .words import NOISE

HOPS = 4
EXAMPLE_NOISE = 15
"""Lines of noise in the example: what fits into the 500 tokens that RULER gives it."""


@register("vt")
@dataclass(frozen=True)
class VariableTracking(Task):
    """A chain of assignments hidden in noise, with one worked example before it (arXiv 2404.06654, section 3; NVIDIA/RULER).

    Differs from RULER: the example has a fixed number of lines; the last line of noise is cut so that the tokens are exactly those asked
    for; the space at the end of the answer prefix goes with the answer.
    """

    benchmark: ClassVar[str] = "RULER"

    @property
    def name(self) -> str:
        return "vt"

    @property
    def source(self) -> str:
        return self.benchmark

    @property
    def budget(self) -> int:
        return 30

    def question(self, length: int, depth: float | None, trial: int) -> Question:
        chance = self.chance(None, trial)
        example = self.chain(chance, 3)
        hidden, names, value = self.chain(chance, 5)
        before, after, prefix = words(value)
        shown = asked_with(*example)
        return Question(
            before=f"{shown}\n\n{before}",
            context=hidden.context(),
            after=after,
            prefix=prefix,
            answers=tuple(Answer("", name) for name in names),
            references=tuple(names),
        )

    def chain(self, chance: random.Random, letters: int) -> tuple[Haystack, list[str], str]:
        """Noise with a chain in it, the names of its variables, and the value of all of them."""
        names: dict[str, None] = {}
        while len(names) <= HOPS:
            names["".join(chance.choices(string.ascii_uppercase, k=letters))] = None
        first, *others = names
        value = str(chance.randrange(10000, 99999))
        lines = [f"VAR {first} = {value}", *(f"VAR {name} = VAR {last} " for last, name in zip(names, others, strict=False))]
        places = in_order(lines, [chance.random() for _ in lines])
        return Haystack(lambda index: NOISE, places, "\n"), [first, *others], value


def asked_with(hidden: Haystack, names: list[str], value: str) -> str:
    """A whole question with its answer."""
    before, after, prefix = words(value)
    return f"{before}{hidden.text(EXAMPLE_NOISE)}{after}{prefix} {' '.join(names)}"


def words(value: str) -> tuple[str, str, str]:
    """What is before the chain, the question, and how the answer begins."""
    return (
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above.",
        f" Answer: According to the chain(s) of variable assignment in the text above, {HOPS + 1} variables are assigned the value "
        f"{value}, they are:",
    )
