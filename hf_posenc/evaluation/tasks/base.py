"""What a task is: questions about a context of any length, whose answers are known."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ...registry import Registry
from .context import Context
from .scores import references_found

TASKS: Registry[Callable[..., Task]] = Registry("task")
"""Name -> what makes the task from a seed and its own options."""
register = TASKS.register
NEXT = 10**6
"""Between the number of a trial and that of the one whose context it is given to see what chance finds."""


class Answer(NamedTuple):
    """A part of what is to be said: the words before it, which are given, and the text that counts."""

    lead: str
    text: str


@dataclass(frozen=True)
class Question:
    """A question with its context and what is to be answered.

    Args:
        before: the words before the context.
        context: where the answer is.
        after: the words after it: the question.
        prefix: how the answer begins, with the space before it; a generated answer goes on from here.
        answers: what is teacher-forced after that.
        references: what a generated answer is compared with.
    """

    before: str
    context: Context
    after: str
    prefix: str
    answers: tuple[Answer, ...]
    references: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A kind of question. What it asks follows from its fields, the length, the depth and the number of the trial, and nothing else.

    Args:
        seed: of everything that chance decides.
        chat: put the prompt into the tokenizer's chat template; the answer is the assistant's.
    """

    benchmark: ClassVar[str]
    """Whose task it is."""
    template: ClassVar[int] = 1
    """Version of its words: results with different words do not compare."""
    by_depth: ClassVar[bool] = False
    """Whether what is asked for lies at one place, which can be chosen."""
    apart: ClassVar[bool] = False
    """Whether the mean over tasks leaves it out: its questions are not made up."""

    seed: int = 0
    chat: bool = False

    @property
    def name(self) -> str:
        """What it is registered as."""
        raise NotImplementedError

    @property
    def source(self) -> str:
        """The benchmark, "-style" where the data are not those of its authors."""
        return f"{self.benchmark}-style"

    @property
    def budget(self) -> int:
        """Tokens that a generated answer may have; they belong to the length. 0: those of the true answer."""
        raise NotImplementedError

    def chance(self, depth: float | None, trial: int) -> random.Random:
        """Chance for one prompt, the same at every length: lengths compare on the same questions."""
        return random.Random(f"{self.name} {self.seed} {depth} {trial}")

    def question(self, length: int, depth: float | None, trial: int) -> Question:
        """The question of one prompt.

        Args:
            length: of the prompt in tokens.
            depth: the share of the context before what is asked for; None: chance decides. Without `by_depth` it is not looked at.
            trial: tells prompts of one length and depth apart.
        """
        raise NotImplementedError

    def other(self, length: int, depth: float | None, trial: int) -> Context:
        """The context of another question, in which only chance finds the answer to that one."""
        return self.question(length, depth, trial + NEXT).context

    def material(self) -> str:
        """The text or the words that contexts are made of, "" where they are only made up; it identifies a run."""
        return ""

    def score(self, said: str, references: tuple[str, ...], question: str) -> float:
        """How much of the answer is in a generated text, from 0 to 1, as the authors score it.

        Args:
            said: what the model has generated after the prefix.
            references: those of the question.
            question: its words after the context.
        """
        return references_found(said, references)


def create(name: str, **options: Any) -> Task:
    """A task by its name.

    Raises:
        ValueError: unknown name, or an option out of its range.
        MissingExtra: its words are in a library that is not installed.
    """
    return TASKS[name](**options)


def names_of(words: Iterable[str]) -> list[str]:
    """Names of tasks; the name of a benchmark, as `ruler`, stands for all of its tasks.

    Raises:
        ValueError: neither.
    """
    found: list[str] = []
    for word in words:
        of_benchmark = [name for name in TASKS if TASKS[name]().benchmark.lower() == word]
        found += of_benchmark or [TASKS.current(word)]
    return [*dict.fromkeys(found)]
