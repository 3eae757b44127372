"""RULER's common and frequent words (Hsieh et al. 2024)."""

from __future__ import annotations

import math
import random
import string
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from .base import Answer, Question, Task, register
from .context import Growing
from .words import word_list

COMMON = 10
"""Words that appear more often than the others."""
SHORT = 4096
"""Below this length RULER's lists of common words repeat less."""


class Repeats(NamedTuple):
    """How often the common words appear, and the others."""

    common: int
    others: int


@register("cwe")
@dataclass(frozen=True)
class CommonWords(Task):
    """The ten words of a numbered list that appear most often, with one worked example (arXiv 2404.06654, section 3; NVIDIA/RULER).

    Differs from RULER: lists of more words than wonderwords has go on with pairs of an adjective and a noun; single words of the next
    ones fill the list up to exactly the tokens asked for. Any order of the ten is right; teacher-forced, it is that of the references.
    """

    benchmark: ClassVar[str] = "RULER"

    @property
    def name(self) -> str:
        return "cwe"

    @property
    def source(self) -> str:
        return self.benchmark

    @property
    def budget(self) -> int:
        return 120

    def material(self) -> str:
        return " ".join(all_words())

    def question(self, length: int, depth: float | None, trial: int) -> Question:
        chance = self.chance(None, trial)
        short = length < SHORT
        example = chance.sample(all_words(), 20 if short else 40)
        shown = shuffled(example, Repeats(3, 1) if short else Repeats(10, 3), chance.random())
        words = [*all_words()]
        chance.shuffle(words)
        repeats, seed = Repeats(6, 1) if short else Repeats(30, 3), chance.random()
        more = random.Random(chance.random())

        def some(count: int) -> list[str]:
            while len(words) < count:
                words.append(f"{more.choice(word_list('adjective'))}-{more.choice(word_list('noun'))}")
            return words[:count]

        def text(count: int) -> str:
            return numbered(shuffled(some(count), repeats, seed))

        def rest(count: int) -> str:
            first = COMMON * repeats.common + (count - COMMON) * repeats.others
            return f" {numbered(some(count + 64)[count:], first)}"

        common = words[:COMMON]
        return Question(
            before=f"{BEFORE}{numbered(shown)}{ASKED}{PREFIX} {numbered(example[:COMMON])}\n{BEFORE}",
            context=Growing(text, rest, COMMON + 1),
            after=ASKED,
            prefix=PREFIX,
            answers=tuple(Answer(f" {place}.", word) for place, word in enumerate(common, start=1)),
            references=tuple(common),
        )


BEFORE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear most often.\n"
)
ASKED = "\nQuestion: What are the 10 most common words in the above list?"
PREFIX = " Answer: The top 10 words that appear most often in the list are:"


def all_words() -> list[str]:
    """Nouns, adjectives and verbs, each once."""
    return sorted({*word_list("noun"), *word_list("adjective"), *word_list("verb")})


def shuffled(words: list[str], repeats: Repeats, seed: float) -> list[str]:
    """The common words, which are the first, and the others as often as they appear."""
    found = words[:COMMON] * repeats.common + words[COMMON:] * repeats.others
    random.Random(seed).shuffle(found)
    return found


def numbered(words: list[str], before: int = 0) -> str:
    """`1. word 2. word`."""
    return " ".join(f"{place}. {word}" for place, word in enumerate(words, start=before + 1))


@register("fwe")
@dataclass(frozen=True)
class FrequentWords(Task):
    """The three most frequent of made-up words, whose frequencies follow a zeta distribution (arXiv 2404.06654, section 3; NVIDIA/RULER).

    Differs from RULER: the text is as long as there is room for, filled up with its noise, the dots.
    """

    benchmark: ClassVar[str] = "RULER"

    @property
    def name(self) -> str:
        return "fwe"

    @property
    def source(self) -> str:
        return self.benchmark

    @property
    def budget(self) -> int:
        return 50

    def question(self, length: int, depth: float | None, trial: int) -> Question:
        chance = self.chance(None, trial)
        seed = chance.random()
        made: dict[str, None] = {}
        while len(made) < max(8, (length - self.budget) // 50):  # of 64 words, all are of the first eight
            made["".join(chance.choices(string.ascii_lowercase, k=6))] = None
        words = ["...", *[*made][1:]]

        def text(count: int) -> str:
            found = [word for word, times in zip(words, frequencies(len(words), count), strict=True) for _ in range(times)]
            random.Random(seed).shuffle(found)
            return " " + " ".join(found)

        return Question(
            before=(
                "Read the following coded text and track the frequency of each coded word. "
                "Find the three most frequently appeared coded words."
            ),
            context=Growing(text, lambda count: " ..." * 64, 64),
            after=(
                "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
                "What are the three most frequently appeared words in the above coded text?"
            ),
            prefix=" Answer: According to the coded text above, the three most frequently appeared words are:",
            answers=tuple(Answer("", word) for word in words[1:4]),
            references=tuple(words[1:4]),
        )


def frequencies(words: int, count: int) -> list[int]:
    """How often each word appears in a text of `count`, the most frequent first: as the inverse square of its rank."""
    zeta = math.pi**2 / 6
    return [int(count / (zeta * rank**2)) for rank in range(1, words + 1)]
