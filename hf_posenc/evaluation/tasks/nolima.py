"""Needles that share no word with the question, after NoLiMa (Modarressi et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from .base import Answer, Question, Task, register
from .haystack import Haystack, with_first_at
from .scores import contains
from .words import ESSAY, sentences

NAMES = (
    *("Alma", "Boris", "Clara", "Dmitri", "Esther", "Felix", "Greta", "Hugo", "Irene", "Jonas"),
    *("Kira", "Leon", "Marta", "Nils", "Olga", "Pavel", "Rosa", "Tomas", "Vera", "Wanda"),
)
OTHERS = 3
"""People of whom something else is told, so that the name alone does not answer."""


class Pair(NamedTuple):
    """What is told of somebody, and a question that it answers for whoever knows the world."""

    needle: str
    question: str


PAIRS = (
    Pair("{} rents a flat whose windows look onto the Colosseum.", "Which character has been to Rome?"),
    Pair("Every evening {} hears the bells of Notre-Dame from the kitchen.", "Which character has been to France?"),
    Pair("{} walks the dog around the Taj Mahal at dawn.", "Which character has been to India?"),
    Pair("{} sells postcards in front of the Golden Gate Bridge.", "Which character has been to California?"),
    Pair("{} feeds camels in the shadow of the Sphinx.", "Which character has been to Egypt?"),
    Pair("{} paints watercolours of the Kremlin towers.", "Which character has been to Russia?"),
    Pair("{} follows a strict vegan diet.", "Which character would turn down a steak?"),
    Pair("{} gets ill from a single glass of milk.", "Which character should avoid cheese?"),
    Pair("{} conducts an orchestra for a living.", "Which character knows how to read sheet music?"),
    Pair("{} removes appendixes at the county hospital.", "Which character went to medical school?"),
    Pair("{} lost both eyes in the accident.", "Which character might use Braille?"),
    Pair("{} wears a cast on the left leg this month.", "Which character cannot run a marathon now?"),
)


@register("nolima")
@dataclass(frozen=True)
class Nolima(Task):
    """Who did something, told in words that the question does not have (arXiv 2502.05167).

    Differs from NoLiMa: needles, questions and names are a set of our own, and the text is `text` and not shuffled books; three others of
    the needles, with other names, lie in it too.

    Args:
        text: "essay" (`embedded_corpus`) or the path of a UTF-8 text.
    """

    benchmark: ClassVar[str] = "NoLiMa"
    by_depth: ClassVar[bool] = True

    text: str = ESSAY

    @property
    def name(self) -> str:
        return "nolima"

    @property
    def budget(self) -> int:
        return 20

    def material(self) -> str:
        return " ".join(sentences(self.text))

    def question(self, length: int, depth: float | None, trial: int) -> Question:
        chance = self.chance(depth, trial)
        names, pairs = chance.sample(NAMES, 1 + OTHERS), chance.sample(PAIRS, 1 + OTHERS)
        first, *others = [pair.needle.format(name) for name, pair in zip(names, pairs, strict=True)]
        at, *depths = [chance.random() for _ in names]
        text = sentences(self.text)
        start = chance.randrange(len(text))
        placed = with_first_at(at if depth is None else depth, first, others, depths)
        return Question(
            before="Read this text. Afterwards there is a question about one of the people in it.\n\n",
            context=Haystack(lambda index: text[(start + index) % len(text)], placed, " ").context(),
            after=f"\n\nAnswer with the name alone, from what the text says or what follows from it.\nQuestion: {pairs[0].question}",
            prefix="\nAnswer:",
            answers=(Answer("", names[0]),),
            references=(names[0],),
        )

    def score(self, said: str, references: tuple[str, ...], question: str) -> float:
        return contains(said, references)
