"""Prompts of a task: its questions in exactly as many tokens as asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, takewhile
from typing import Any

import torch

from ..corpus import Document, adds_bos
from ..tasks import Question, Task
from ..tasks.base import Answer
from ..tasks.context import Context

SLOT = "[[context]]"


@dataclass(frozen=True)
class Prompt:
    """One prompt, its answers included.

    Args:
        input_ids: [L] int64.
        answers: the tokens of each answer, from the first that tells something of it to its last.
        keys: what a generated answer is compared with.
        start: where a generated answer begins, and `budget` how many tokens it may have.
        question: the words after the context.
    """

    input_ids: torch.Tensor
    answers: tuple[range, ...]
    keys: tuple[str, ...]
    start: int
    budget: int
    question: str

    @property
    def sha256(self) -> str:
        """Identifies the exact tokens (16 hex digits)."""
        return Document("", self.input_ids).sha256

    @property
    def scored(self) -> torch.Tensor:
        """[N] int64, the indices of the tokens of all answers."""
        return torch.tensor([*chain.from_iterable(self.answers)])


class Prompts:
    """The prompts of a task for one tokenizer.

    Raises:
        ValueError: the task wants a chat template and the tokenizer has none.
        CorpusError: the file of the text cannot be read.
        MissingExtra: the words are in a library that is not installed.
    """

    def __init__(self, task: Task, tokenizer: Any):
        if task.chat and not getattr(tokenizer, "chat_template", None):
            raise ValueError(f"the tokenizer {tokenizer.name_or_path} has no chat template: leave chat out")
        self.task = task
        self.tokenizer = tokenizer
        self.bos = [tokenizer.bos_token_id] if not task.chat and adds_bos(tokenizer, "auto") else []
        self.text = task.material()

    @cached_property
    def material(self) -> list[int]:
        """Tokens of what contexts are made of."""
        return self.tokens(self.text)

    @property
    def filler_identity(self) -> dict[str, Any]:
        """How many tokens there are in what contexts are made of, and their hash."""
        return {"tokens": len(self.material), "sha256": Document("", torch.tensor(self.material)).sha256}

    def first_tokens(self, text: str) -> list[int]:
        """Tokens of what a prompt begins with, without those that the tokenizer puts around a text."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def tokens(self, text: str) -> list[int]:
        """Tokens of a part of a prompt that follows another: without the space that some tokenizers begin a text with."""
        lead = self.lead
        ids = self.first_tokens(f"\n{text}") if lead else []
        return ids[len(lead) :] if lead and ids[: len(lead)] == lead else self.first_tokens(text)

    @cached_property
    def lead(self) -> list[int]:
        """Tokens of a new line where a space is put before it, else none."""
        ids = self.first_tokens("\n")
        return ids if len(ids) > 1 else []

    def encode(self, text: str) -> list[int]:
        """The same, without going through all of the material again."""
        return self.material if text == self.text else self.tokens(text)

    def prompt(self, length: int, depth: float | None, trial: int, other: bool = False) -> Prompt:
        """The prompt of `length` tokens, those that an answer may have included.

        Args:
            depth: share of the context before what is asked for, where the task has such a place; None: chance decides.
            trial: tells the prompts of a cell apart.
            other: the context of another question, so that only chance can find the answer.

        Raises:
            ValueError: the words around the context have more tokens than that.
        """
        question = self.task.question(length, depth, trial)
        head, tail = self.words(question)
        context = self.context(question, length, depth, trial, other)
        room, least = length - len(head) - self.after(tail), context.least(self.tokens)
        if room < least:
            raise ValueError(f"length {length:,} is too short: the words around the filler have {length - room + least:,} tokens")
        ids = head + context.fill(self.encode, room)
        answers = tuple(range(len(ids) + each.start, len(ids) + each.stop) for each in tail.answers)
        start, ids = len(ids) + tail.start, ids + tail.ids
        budget = len(ids) - start if self.task.budget == 0 else self.task.budget
        return Prompt(torch.tensor(ids), answers, question.references, start, budget, question.after)

    def shortest(self, length: int, depth: float | None, trial: int, other: bool = False) -> int:
        """How many tokens that prompt has with the shortest context that there is."""
        question = self.task.question(length, depth, trial)
        head, tail = self.words(question)
        return len(head) + self.context(question, length, depth, trial, other).least(self.tokens) + self.after(tail)

    def context(self, question: Question, length: int, depth: float | None, trial: int, other: bool) -> Context:
        """That of the question, or of another one."""
        return self.task.other(length, depth, trial) if other else question.context

    def after(self, tail: Tail) -> int:
        """Tokens after the context: what is given, and what an answer may have."""
        return tail.start + max(self.task.budget, len(tail.ids) - tail.start)

    def words(self, question: Question) -> tuple[list[int], Tail]:
        """Tokens of what comes first, and of what comes after the context."""
        opening, closing = self.frame(question)
        return self.bos + self.first_tokens(opening), self.tail(closing, question.answers)

    def frame(self, question: Question) -> tuple[str, str]:
        """The text before the context, and that between context and answer."""
        text = f"{question.before}{SLOT}{question.after}"
        prefix = question.prefix
        if self.task.chat:
            turn = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            prefix = prefix.lstrip()
        opening, _, closing = text.partition(SLOT)
        return opening, closing + prefix

    def tail(self, given: str, answers: Sequence[Answer]) -> Tail:
        """Tokens of what is given and of all answers, as the tokenizer makes them from one text.

        A space that is a token of its own belongs to the words before, one that is part of the first token of an answer to the answer.
        """
        before, until, text = [], [], given
        for answer in answers:
            before.append(self.tokens(f"{text}{answer.lead} "))
            text = f"{text}{answer.lead} {answer.text}"
            until.append(self.tokens(text))
        ids = until[-1]
        first = [shared(ids, each) for each in before]
        stop = [(end := shared(ids, each)) + (end < len(each)) for each in until]  # a token may go on into the next lead
        return Tail(ids, shared(ids, self.tokens(f"{given} ")), [*map(range, first, stop)])


def shared(ids: list[int], others: list[int]) -> int:
    """How many of the first tokens of two texts are the same."""
    return len([*takewhile(lambda pair: pair[0] == pair[1], zip(ids, others, strict=False))])


@dataclass(frozen=True)
class Tail:
    """What comes after the context.

    Args:
        ids: all tokens.
        start: how many of them are given before the first answer and its lead.
        answers: where each is in them.
    """

    ids: list[int]
    start: int
    answers: list[range]
