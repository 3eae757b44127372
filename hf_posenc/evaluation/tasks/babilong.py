"""BABILong's facts in a text (Kuratov et al. 2024), simulated as in bAbI (Weston et al. 2015)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

from .base import Answer, Question, Task, register
from .haystack import Haystack, in_order
from .scores import only_label
from .words import ESSAY, sentences

PEOPLE = ("Mary", "John", "Daniel", "Sandra")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
GO = ("went to", "moved to", "journeyed to", "travelled to", "went back to")
TAKE = ("got", "took", "grabbed", "picked up")
DROP = ("dropped", "left", "discarded", "put down")


class Words(NamedTuple):
    """What the authors say around facts and question."""

    instruction: str
    examples: str
    form: str


CARRIED = (
    "You need to answer the question based only on the information from the facts.\n"
    "If a person got an item in the first location and travelled to the second location the item is also in the second location. "
    "If a person dropped an item in the first location and moved to the second location the item remains in the first location."
)
HIDDEN = "with the facts about locations and actions of different persons hidden in some random text and a question."
WORDS = {
    1: Words(
        "I will give you context with the facts about positions of different persons hidden in some random text and a question. "
        "You need to answer the question based only on the information from the facts. "
        "If a person was in different locations, use the latest location to answer the question.",
        "<example>\nCharlie went to the hallway. Judith come back to the kitchen. Charlie travelled to balcony. Where is Charlie?\n"
        "Answer: The most recent location of Charlie is balcony.\n</example>\n\n"
        "<example>\nAlan moved to the garage. Charlie went to the beach. Alan went to the shop. Rouse travelled to balcony. "
        "Where is Alan?\nAnswer: The most recent location of Alan is shop.\n</example>",
        "Always return your answer in the following format: The most recent location of ’person’ is ’location’. "
        "Do not write anything else after that.",
    ),
    2: Words(
        f"I give you context {HIDDEN}{CARRIED}",
        "<example>\nCharlie went to the kitchen. Charlie got a bottle. Charlie moved to the balcony. Where is the bottle?\n"
        "Answer: The bottle is in the balcony.\n</example>\n"
        "<example>\nAlan moved to the garage. Alan got a screw driver. Alan moved to the kitchen. Where is the screw driver?\n"
        "Answer: The screw driver is in the kitchen.\n</example>",
        "Always return your answer in the following format: The ’item’ is in ’location’. Do not write anything else after that.",
    ),
    3: Words(
        f"I give you context {HIDDEN} {CARRIED}",
        "<example>\nJohn journeyed to the bedroom. Mary grabbed the apple. Mary went back to the bathroom. "
        "Daniel journeyed to the bedroom. Daniel moved to the garden. Mary travelled to the kitchen. "
        "Where was the apple before the kitchen?\nAnswer: Before the kitchen the apple was in the bathroom.\n</example>\n"
        "<example>\nJohn went back to the bedroom. John went back to the garden. John went back to the kitchen. "
        "Sandra took the football. Sandra travelled to the garden. Sandra journeyed to the bedroom. "
        "Where was the football before the bedroom?\nAnswer: Before the bedroom the football was in the garden.\n</example>",
        "Always return your answer in the following format: Before the $location_1$ the $item$ was in the $location_2$. "
        "Do not write anything else after that.",
    ),
}
FACTS = {1: 8, 2: 16, 3: 32}


class Story(NamedTuple):
    """Facts in their order, the question about them, how its answer begins, and the place that ends it."""

    facts: list[str]
    question: str
    lead: str
    place: str


@dataclass(frozen=True)
class Babilong(Task):
    """Where people and things are, from facts spread over a text in their order (arXiv 2406.10149; booydar/babilong).

    Differs from BABILong: the facts are simulated here by the rules of bAbI, not taken from it; the text is `text` and not PG-19; the
    prompt ends with "Answer:", as in its examples; the last sentence is cut so that the tokens are exactly those asked for.

    Args:
        facts: how many of them an answer takes, 1 to 3: qa1, qa2 or qa3.
        text: "essay" (`embedded_corpus`) or the path of a UTF-8 text.
    """

    benchmark: ClassVar[str] = "BABILong"

    facts: int = 1
    text: str = ESSAY

    @property
    def name(self) -> str:
        return f"babilong_qa{self.facts}"

    @property
    def budget(self) -> int:
        return 20

    def material(self) -> str:
        return " ".join(sentences(self.text))

    def question(self, length: int, depth: float | None, trial: int) -> Question:
        chance, words = self.chance(None, trial), WORDS[self.facts]
        story = told(chance, self.facts)
        places = in_order(story.facts, [chance.random() for _ in story.facts])
        text = sentences(self.text)
        start = chance.randrange(len(text))
        return Question(
            before=f"{words.instruction}\n\n{words.examples}\n\n{words.form}\n\n<context>\n",
            context=Haystack(lambda index: text[(start + index) % len(text)], places, " ").context(),
            after=f"\n</context>\n\nQuestion: {story.question}",
            prefix="\nAnswer:",
            answers=(Answer(f" {story.lead}", story.place),),
            references=(story.place,),
        )

    def score(self, said: str, references: tuple[str, ...], question: str) -> float:
        return only_label(said, references[0], question, PLACES)


for each in WORDS:
    register(f"babilong_qa{each}")(partial(Babilong, facts=each))


def told(chance: random.Random, facts: int) -> Story:
    """A story with a question that so many of its facts answer; stories without one are told anew."""
    while True:
        found = asked(World(chance, things=facts > 1), FACTS[facts], facts)
        if found is not None:
            return found


class World:
    """Who is where and holds what, and where each thing has been.

    Args:
        chance: decides what happens.
        things: people take and drop them.
    """

    def __init__(self, chance: random.Random, things: bool):
        self.chance, self.things = chance, things
        self.where: dict[str, str] = {}
        self.holder: dict[str, str] = {}
        self.been: dict[str, list[str]] = {}

    def happens(self) -> str:
        """The next fact."""
        who = self.chance.choice(PEOPLE)
        held = [thing for thing in THINGS if self.holder.get(thing) == who]
        free = [thing for thing in THINGS if thing not in self.holder and self.been.get(thing, [None])[-1] in (None, self.where.get(who))]
        if self.things and who in self.where and self.chance.random() < 0.4:
            if free:
                return self.taken(who, self.chance.choice(free))
            if held:
                thing = self.chance.choice(held)
                del self.holder[thing]
                return f"{who} {self.chance.choice(DROP)} the {thing}."
        return self.gone(who, self.chance.choice([place for place in PLACES if place != self.where.get(who)]))

    def taken(self, who: str, thing: str) -> str:
        """Somebody takes a thing where they are."""
        self.holder[thing] = who
        if thing not in self.been:
            self.been[thing] = [self.where[who]]
        return f"{who} {self.chance.choice(TAKE)} the {thing} there."

    def gone(self, who: str, place: str) -> str:
        """Somebody goes, with what they hold."""
        self.where[who] = place
        for thing, holder in self.holder.items():
            if holder == who:
                self.been[thing].append(place)
        return f"{who} {self.chance.choice(GO)} the {place}."


def asked(world: World, count: int, facts: int) -> Story | None:
    """A question after `count` facts; None where nothing can be asked."""
    said = [world.happens() for _ in range(count)]
    if facts == 1:
        who = world.chance.choice([*world.where])
        return Story(said, f"Where is {who}?", f"The most recent location of {who} is", world.where[who])
    known = [thing for thing, places in world.been.items() if len(places) >= facts]
    if not known:
        return None
    thing = world.chance.choice(known)
    *_, before, last = world.been[thing]
    if facts == 2:
        return Story(said, f"Where is the {thing}?", f"The {thing} is in the", last)
    return Story(said, f"Where was the {thing} before the {last}?", f"Before the {last} the {thing} was in the", before)
