"""RULER's needles in a haystack (Hsieh et al. 2024)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple

from .base import Answer, Question, Task, register
from .haystack import Haystack, Unit, with_first_at
from .words import ESSAY, NOISE, sentences, uuid, word_list

Kind = Literal["numbers", "words", "uuids"]
DEPTHS = [round(100 * step / 39) / 100 for step in range(40)]
"""Where needles may lie in an essay."""


class Variant(NamedTuple):
    """What tells the tasks apart: the haystack, what keys and values are, and how many keys, values of a key, and keys asked for."""

    haystack: Literal["noise", "essay", "needle"]
    keys_are: Kind = "words"
    values_are: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


VARIANTS = {
    "single_1": Variant("noise"),
    "single_2": Variant("essay"),
    "single_3": Variant("essay", values_are="uuids"),
    "multikey_1": Variant("essay", keys=4),
    "multikey_2": Variant("needle"),
    "multikey_3": Variant("needle", keys_are="uuids", values_are="uuids"),
    "multivalue": Variant("essay", values=4),
    "multiquery": Variant("essay", keys=4, queries=4),
}


@dataclass(frozen=True)
class Niah(Task):
    """Magic numbers of words, hidden in noise, in an essay or among others of their form (arXiv 2404.06654, section 3; NVIDIA/RULER).

    Differs from RULER: the essay is not Graham's but `text`, cut at every end of a sentence; the last unit of the haystack is cut so that
    the tokens are exactly those asked for; the depth of the needle that is asked for can be chosen.

    Args:
        variant: one of `VARIANTS`.
        text: the haystack where that is an essay: "essay" (`embedded_corpus`) or the path of a UTF-8 text.
    """

    benchmark: ClassVar[str] = "RULER"
    by_depth: ClassVar[bool] = True

    variant: str = "single_1"
    text: str = ESSAY

    @property
    def name(self) -> str:
        return f"niah_{self.variant}"

    @property
    def settings(self) -> Variant:
        """What the variant is."""
        return VARIANTS[self.variant]

    @property
    def source(self) -> str:
        return f"{self.benchmark}-style" if self.settings.haystack == "essay" else self.benchmark

    @property
    def budget(self) -> int:
        return 128

    def material(self) -> str:
        words = [*word_list("adjective"), *word_list("noun")] if self.settings.keys_are == "words" else []
        return " ".join([*words, *(sentences(self.text) if self.settings.haystack == "essay" else [])])

    def question(self, length: int, depth: float | None, trial: int) -> Question:
        chance, it = self.chance(depth, trial), self.settings
        keys = [drawn(chance, it.keys_are) for _ in range(it.keys)]
        values = {key: [drawn(chance, it.values_are) for _ in range(it.values)] for key in keys}
        asked = chance.sample(keys, it.queries)
        answers = [value for key in asked for value in values[key]]
        needles = [needle(it, key, value) for key in keys for value in values[key]]
        first = needle(it, asked[0], answers[0])
        others = [each for each in needles if each != first]
        chance.shuffle(others)
        depths = chance.sample(DEPTHS, len(needles)) if it.haystack == "essay" else [chance.random() for _ in needles]
        placed = with_first_at(depths[0] if depth is None else depth, first, others, depths[1:])
        asked_for, one = listed(asked), len(answers) == 1
        kinds = it.values_are.removesuffix("s") if one else it.values_are
        return Question(
            before=(
                f"{'A' if one else 'Some'} special magic {kinds} {'is' if one else 'are'} hidden within the following text. "
                f"Make sure to memorize it. I will quiz you about the {kinds} afterwards.\n"
            ),
            context=Haystack(self.unit(chance), placed, " " if it.haystack == "essay" else "\n").context(),
            after=f"\nWhat {'is' if one else 'are all'} the special magic {kinds} for {asked_for} mentioned in the provided text?",
            prefix=f" The special magic {kinds} for {asked_for} mentioned in the provided text {'is' if one else 'are'}",
            answers=tuple(Answer(lead, value) for lead, value in zip(separators(len(answers)), answers, strict=True)),
            references=tuple(answers),
        )

    def unit(self, chance: random.Random) -> Unit:
        """The haystack; an essay begins with any of its sentences."""
        it = self.settings
        if it.haystack == "noise":
            return lambda index: NOISE
        if it.haystack == "needle":
            others = random.Random(chance.random())
            return lambda index: needle(it, drawn(others, it.keys_are), drawn(others, it.values_are))
        text = sentences(self.text)
        start = chance.randrange(len(text))
        return lambda index: text[(start + index) % len(text)]


for each in VARIANTS:
    register(f"niah_{each}")(partial(Niah, variant=each))


def needle(variant: Variant, key: str, value: str) -> str:
    """The sentence that tells a value."""
    return f"One of the special magic {variant.values_are} for {key} is: {value}."


def drawn(chance: random.Random, kind: Kind) -> str:
    """A key or a value: a number of seven digits, an adjective with a noun, or a UUID."""
    if kind == "numbers":
        return str(chance.randint(10**6, 10**7 - 1))
    if kind == "words":
        return f"{chance.choice(word_list('adjective'))}-{chance.choice(word_list('noun'))}"
    return uuid(chance)


def listed(words: list[str]) -> str:
    """`a`, or `a, b, and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}, and {words[-1]}"


def separators(count: int) -> list[str]:
    """What is before each word of a list."""
    return ["", *[","] * (count - 2), *[", and"] * (count > 1)]
