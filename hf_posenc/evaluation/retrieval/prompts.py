"""Prompts of a task: its questions in exactly as many tokens as asked for."""

from __future__ import annotations

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

    def tokens(self, text: str) -> list[int]:
        """Tokens of a part of a prompt, without those that the tokenizer puts around a text."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

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
        start, answers = len(ids) + tail[0].start, []
        for piece in tail:
            answers.append(range(len(ids) + piece.first, len(ids) + len(piece.ids)))
            ids = ids + piece.ids
        budget = len(ids) - start if self.task.budget == 0 else self.task.budget
        return Prompt(torch.tensor(ids), tuple(answers), question.references, start, budget, question.after)

    def shortest(self, length: int, depth: float | None, trial: int, other: bool = False) -> int:
        """How many tokens that prompt has with the shortest context that there is."""
        question = self.task.question(length, depth, trial)
        head, tail = self.words(question)
        return len(head) + self.context(question, length, depth, trial, other).least(self.tokens) + self.after(tail)

    def context(self, question: Question, length: int, depth: float | None, trial: int, other: bool) -> Context:
        """That of the question, or of another one."""
        return self.task.other(length, depth, trial) if other else question.context

    def after(self, tail: list[Piece]) -> int:
        """Tokens after the context: what is given, and what an answer may have."""
        return tail[0].start + max(self.task.budget, sum(len(piece.ids) for piece in tail) - tail[0].start)

    def words(self, question: Question) -> tuple[list[int], list[Piece]]:
        """Tokens of what comes first, and of each answer with the words before it."""
        opening, closing = self.frame(question)
        given = [closing, *[""] * (len(question.answers) - 1)]
        return self.bos + self.tokens(opening), [self.answer(*each) for each in zip(given, question.answers, strict=True)]

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

    def answer(self, given: str, answer: Answer) -> Piece:
        """Tokens of what is given, the lead and the answer, as the tokenizer makes them from one text.

        A space that is a token of its own belongs to the words before, one that is part of the first token of an answer to the answer.
        """
        ids = self.tokens(f"{given}{answer.lead} {answer.text}")
        return Piece(ids, self.shared(ids, f"{given} "), self.shared(ids, f"{given}{answer.lead} "))

    def shared(self, ids: list[int], text: str) -> int:
        """How many of the first tokens are those of a text."""
        return len([*takewhile(lambda pair: pair[0] == pair[1], zip(ids, self.tokens(text), strict=False))])


@dataclass(frozen=True)
class Piece:
    """An answer with the words before it.

    Args:
        ids: all tokens.
        start: how many of them are given before the answer and its lead.
        first: how many before the answer.
    """

    ids: list[int]
    start: int
    first: int
