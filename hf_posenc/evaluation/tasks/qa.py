"""RULER's questions about documents among others (Hsieh et al. 2024)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, cycle, islice
from typing import ClassVar

from ..corpus import CorpusError
from . import qa_data
from .base import Answer, Question, Task, register
from .context import Context, Growing
from .scores import any_found

INSTRUCTION = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
JOINT = "\n\n"


@dataclass(frozen=True)
class Qa(Task):
    """A question about one or several documents, which lie among others in any order (arXiv 2404.06654, section 3; NVIDIA/RULER, qa.py).

    Differs from RULER: questions are drawn from all there are, and not the first ones; the last document is cut so that the tokens are
    exactly those asked for. Teacher-forced, the first of several right answers counts.
    """

    benchmark: ClassVar[str] = "RULER-QA"
    apart: ClassVar[bool] = True

    @property
    def source(self) -> str:
        return "RULER"

    @property
    def budget(self) -> int:
        return 32

    @property
    def data(self) -> qa_data.Data:
        """Questions and documents.

        Raises:
            CorpusError: no file or data set was given, there is none, or it is in another format.
        """
        raise NotImplementedError

    def material(self) -> str:
        """A hash of the data, whose text would take long to encode."""
        return self.data.sha256

    def question(self, length: int, depth: float | None, trial: int) -> Question:
        asked = self.asked(trial)
        return Question(
            before=f"{INSTRUCTION}\n\nThe following are given documents.\n\n",
            context=self.pile(asked, trial).context(),
            after=f"\n\n{INSTRUCTION}\n\nQuestion: {asked.text}",
            prefix=" Answer:",
            answers=(Answer("", asked.answers[0]),),
            references=asked.answers,
        )

    def other(self, length: int, depth: float | None, trial: int) -> Context:
        mine, count = frozenset(self.asked(trial).documents), len(self.data.asked)
        for each in map(self.asked, range(trial + 1, trial + count)):
            if mine.isdisjoint(each.documents):
                return self.pile(each, trial, mine).context()
        raise CorpusError("all questions are about the same documents: none has a context that does not answer the others (controls)")

    def score(self, said: str, references: tuple[str, ...], question: str) -> float:
        return any_found(said, references)

    def asked(self, trial: int) -> qa_data.Asked:
        """The question of a trial: all of them in an order that chance decides, and again."""
        questions = self.data.asked
        order = random.Random(f"{self.name} {self.seed}").sample(range(len(questions)), len(questions))
        return questions[order[trial % len(order)]]

    def pile(self, asked: qa_data.Asked, trial: int, without: frozenset[int] = frozenset()) -> Pile:
        """The documents of a question and others, but for some."""
        return Pile(self.data.documents, asked, without, self.chance(None, trial).random())


@dataclass(frozen=True)
class Pile:
    """Documents in any order: those that are needed, then others from the same article, then any, then again.

    Args:
        documents: all there are.
        asked: the question.
        without: numbers of documents that are left out.
        seed: of the order.
    """

    documents: tuple[str, ...]
    asked: qa_data.Asked
    without: frozenset[int]
    seed: float

    def context(self) -> Growing:
        """As a context that grows by documents."""
        return Growing(self.text, self.rest, len(self.asked.documents))

    @cached_property
    def order(self) -> list[int]:
        """Numbers of all documents, which are taken as far as there is room."""
        chance = random.Random(self.seed)
        related = chance.sample(self.asked.related, len(self.asked.related))
        known = {*self.asked.documents, *related}
        others = [number for number in range(len(self.documents)) if number not in known]
        chance.shuffle(others)
        return [number for number in chain(self.asked.documents, related, others) if number not in self.without]

    def text(self, count: int) -> str:
        """So many, shuffled."""
        needed = self.asked.documents
        shown = [*needed] if count == len(needed) else [*islice(cycle(self.order), count)]
        random.Random(self.seed).shuffle(shown)
        return self.numbered(shown)

    def rest(self, count: int) -> str:
        """Those that follow."""
        return JOINT + self.numbered([*islice(cycle(self.order), count, count + 4)], count)

    def numbered(self, shown: list[int], before: int = 0) -> str:
        """Their texts, each with its place."""
        return JOINT.join(f"Document {place}:\n{self.documents[number]}" for place, number in enumerate(shown, start=before + 1))


@register("qa_1")
@dataclass(frozen=True)
class Squad(Qa):
    """Questions of SQuAD.

    Args:
        squad: the file of the authors (dev-v2.0.json), or a data set of the hub (rajpurkar/squad_v2).
    """

    squad: str | None = None

    @property
    def name(self) -> str:
        return "qa_1"

    @property
    def data(self) -> qa_data.Data:
        if self.squad is None:
            raise CorpusError("qa_1 asks questions of SQuAD: give its file (dev-v2.0.json), or a data set of the hub, as squad")
        return qa_data.squad(self.squad)


@register("qa_2")
@dataclass(frozen=True)
class HotpotQa(Qa):
    """Questions of HotpotQA, each about two of ten documents.

    Args:
        hotpotqa: the file of the authors (hotpot_dev_distractor_v1.json), or a data set of the hub (hotpotqa/hotpot_qa).
    """

    hotpotqa: str | None = None

    @property
    def name(self) -> str:
        return "qa_2"

    @property
    def data(self) -> qa_data.Data:
        if self.hotpotqa is None:
            raise CorpusError(
                "qa_2 asks questions of HotpotQA: give its file (hotpot_dev_distractor_v1.json), or a data set of the hub, as hotpotqa"
            )
        return qa_data.hotpotqa(self.hotpotqa)
