"""The nth of equal requests in a conversation, after OpenAI's MRCR (Vodrahalli et al. 2024)."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from typing import ClassVar

from .base import Answer, Question, Task, register
from .haystack import Haystack, in_order
from .scores import similar_after
from .words import word_list

FORMS = ("poem", "riddle", "short story", "social media post", "news article", "song", "letter", "speech")
TOPICS = ("tapirs", "rocks", "bridges", "rain", "bakers", "clocks", "gardens", "trains", "islands", "winter", "markets", "lamps")
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th")
MARK = 10
"""Characters of the random string before the answer."""


@register("mrcr")
@dataclass(frozen=True)
class Mrcr(Task):
    """One of several answers to the same request, told from each other by their order alone (arXiv 2409.12640; openai/mrcr).

    Differs from MRCR: what the assistant has said is put together from lists of words and not written by a model, and is shorter; the
    conversation is told as a text.

    Args:
        needles: how often the request appears, 2 to 8.

    Raises:
        ValueError: `needles` is out of its range.
    """

    benchmark: ClassVar[str] = "MRCR"

    needles: int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.needles <= len(ORDINALS):
            raise ValueError(f"needles must be 2 to {len(ORDINALS)}, got {self.needles}")

    @property
    def name(self) -> str:
        return "mrcr"

    @property
    def budget(self) -> int:
        return 128

    def material(self) -> str:
        return " ".join([*word_list("adjective"), *word_list("noun"), *word_list("verb")])

    def question(self, length: int, depth: float | None, trial: int) -> Question:
        chance = self.chance(None, trial)
        form, topic = chance.choice(FORMS), chance.choice(TOPICS)
        answers = [written(chance, form, topic) for _ in range(self.needles)]
        wanted, mark = chance.randrange(self.needles), "".join(chance.choices(string.ascii_letters + string.digits, k=MARK))
        needles = [exchange(form, topic, answer) for answer in answers]
        others = random.Random(chance.random())

        def unit(index: int) -> str:
            of, about = others.choice([(of, about) for of in FORMS for about in TOPICS if (of, about) != (form, topic)])
            return exchange(of, about, written(others, of, about))

        return Question(
            before="The following is a conversation between a user and an assistant.\n\n",
            context=Haystack(unit, in_order(needles, [chance.random() for _ in needles]), "\n").context(),
            after=(
                f"\nUser: Prepend {mark} to the {ORDINALS[wanted]} (1 indexed) {form} about {topic}. "
                "Do not include any other text in your response."
            ),
            prefix="\nAssistant:",
            answers=(Answer("", f"{mark}{answers[wanted]}"),),
            references=(f"{mark}{answers[wanted]}",),
        )

    def score(self, said: str, references: tuple[str, ...], question: str) -> float:
        return similar_after(said.removeprefix(" "), references[0], references[0][:MARK])  # the space after "Assistant:"


def exchange(form: str, topic: str, answer: str) -> str:
    """A request with what was answered."""
    return f"User: Write a {form} about {topic}\nAssistant: {answer}"


def written(chance: random.Random, form: str, topic: str) -> str:
    """What an assistant may answer: three sentences that no other answer has."""
    adjectives, nouns, verbs = (
        chance.sample(word_list("adjective"), 6),
        chance.sample(word_list("noun"), 4),
        chance.sample(word_list("verb"), 3),
    )
    return (
        f"A {adjectives[0]} {form} about {adjectives[1]} {topic}: they {verbs[0]} where the {adjectives[2]} {nouns[0]} waits. "
        f"Nobody can {verbs[1]} a {adjectives[3]} {nouns[1]} as {topic} do, and every {nouns[2]} knows it. "
        f"So {topic} {verbs[2]} once more, {adjectives[4]} and {adjectives[5]}, until the {nouns[3]} is gone."
    )
