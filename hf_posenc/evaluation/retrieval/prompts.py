"""Passkey prompts: numbers hidden in filler, in exactly as many tokens as asked for."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, cycle, islice, takewhile
from typing import Any, Literal, NamedTuple

import torch

from ..corpus import Document, adds_bos, embedded_corpus, read_texts

TEMPLATE = 1
"""Version of the words below: results with different words do not compare."""
INSTRUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
GRASS = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NAMES = (
    *("Athens", "Berlin", "Cairo", "Dublin", "Geneva", "Hanoi", "Istanbul", "Jakarta", "Kyoto", "Lisbon", "Madrid", "Nairobi"),
    *("Oslo", "Paris", "Quito", "Rome", "Sydney", "Tokyo", "Vienna", "Warsaw"),
)
DISTRACTIONS = ("zip code", "room number", "order number", "flight number", "page number", "phone extension", "street number", "bus line")
SLOT = "[[filler]]"


@dataclass(frozen=True)
class PasskeyTask:
    """Finding a number in filler (Mohtashami and Jaggi 2023, arXiv 2305.16300, section 4.2).

    A prompt is an instruction, filler, "The pass key is 58231. Remember it. 58231 is the pass key.", filler, the question and the
    answer. It follows from the task, the tokenizer, the length, the depth and the number of the trial, and from nothing else.

    Differs from the paper: all keys have the same number of digits, and the length counts tokens, those of the answer included.

    Args:
        digits: of every number.
        needles: how many pass keys there are; several have names.
        ask: for "one", that at the depth of the prompt, or for "all" of them, this one first. The others lie anywhere.
        distractors: how many numbers of other kinds lie anywhere, in sentences of the same form.
        filler: "grass" (the sentences of the paper), "essay" (`embedded_corpus`) or the path of a UTF-8 text.
        chat: put the prompt into the tokenizer's chat template; the answer is the assistant's.
        seed: of numbers, names, places and of where the filler begins.

    Raises:
        ValueError: a number out of its range.
    """

    digits: int = 5
    needles: int = 1
    ask: Literal["one", "all"] = "one"
    distractors: int = 0
    filler: str = "grass"
    chat: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ask not in ("one", "all"):
            raise ValueError(f"ask must be 'one' or 'all', got {self.ask!r}")
        if not 1 <= self.needles <= len(NAMES):
            raise ValueError(f"needles must be 1 to {len(NAMES)}, got {self.needles}")
        if self.digits < 1 or self.distractors < 0:
            raise ValueError(f"digits must be at least 1 and distractors at least 0, got {self.digits} and {self.distractors}")
        if self.needles + self.distractors > len(self.numbers):
            raise ValueError(f"{self.needles + self.distractors} different numbers need more than {self.digits} digits")

    @property
    def numbers(self) -> range:
        """All numbers with that many digits."""
        return range(10 ** (self.digits - 1), 10**self.digits)

    def draw(self, depth: float, trial: int) -> Draw:
        """What chance decides about a prompt, the same at every length: lengths compare on the same numbers."""
        chance = random.Random(f"{self.seed} {depth:g} {trial}")
        count = self.needles + self.distractors
        keys = ["pass key"] if self.needles == 1 else [f"pass key of {name}" for name in chance.sample(NAMES, self.needles)]
        things = [*keys, *islice(cycle(chance.sample(DISTRACTIONS, len(DISTRACTIONS))), self.distractors)]
        numbers = map(str, chance.sample(self.numbers, count))
        return Draw(tuple(zip(things, numbers, strict=True)), (depth, *(chance.random() for _ in range(count - 1))), chance.random())

    def asked(self, draw: Draw) -> tuple[Fact, ...]:
        """The facts that the question is about."""
        return draw.facts[: self.needles if self.ask == "all" else 1]

    def text(self) -> str:
        """The filler; `CorpusError` where its file cannot be read."""
        if self.filler == "grass":
            return GRASS
        return embedded_corpus() if self.filler == "essay" else read_texts([self.filler])[0]


Fact = tuple[str, str]
"""A thing and its number."""


class Draw(NamedTuple):
    """The chance part of a prompt.

    Args:
        facts: what is hidden: the needles, the one at the depth of the prompt first, then the distractors.
        depths: the share of the filler before each.
        start: where in the filler the prompt begins, as a share of it.
    """

    facts: tuple[Fact, ...]
    depths: tuple[float, ...]
    start: float


@dataclass(frozen=True)
class Prompt:
    """One prompt, its answers included.

    Args:
        input_ids: [L] int64.
        answers: the tokens of each answer, from the first that tells something of the number to its last.
        keys: the number that each of them says.
    """

    input_ids: torch.Tensor
    answers: tuple[range, ...]
    keys: tuple[str, ...]

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
        CorpusError: the file of the filler cannot be read.
    """

    def __init__(self, task: PasskeyTask, tokenizer: Any):
        if task.chat and not getattr(tokenizer, "chat_template", None):
            raise ValueError(f"the tokenizer {tokenizer.name_or_path} has no chat template: leave chat out")
        self.task = task
        self.tokenizer = tokenizer
        self.bos = [tokenizer.bos_token_id] if not task.chat and adds_bos(tokenizer, "auto") else []
        self.filler = self.encode(f" {task.text().strip()}")

    @property
    def filler_identity(self) -> dict[str, Any]:
        """How many tokens the filler has before it repeats, and their hash."""
        return {"tokens": len(self.filler), "sha256": Document("", torch.tensor(self.filler)).sha256}

    def encode(self, text: str) -> list[int]:
        """Tokens of a part of a prompt, without those that the tokenizer puts around a text."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def prompt(self, length: int, depth: float, trial: int) -> Prompt:
        """The prompt of `length` tokens with the needle after the share `depth` of its filler; `trial` tells those of a cell apart.

        Raises:
            ValueError: the words around the filler have more tokens than that.
        """
        draw = self.task.draw(depth, trial)
        head, hidden, tail = self.words(draw)
        room = length - len(head) - total(hidden) - total(ids for ids, _ in tail)
        if room < 0:
            raise ValueError(f"length {length:,} is too short: the words around the filler have {length - room:,} tokens")
        start = int(draw.start * len(self.filler))
        ids = head + buried(hidden, draw.depths, [*islice(cycle(self.filler), start, start + room)])
        answers = []
        for piece, first in tail:
            answers.append(range(len(ids) + first, len(ids) + len(piece)))
            ids = ids + piece
        return Prompt(torch.tensor(ids), tuple(answers), tuple(number for _, number in self.task.asked(draw)))

    def shortest(self, depth: float, trial: int) -> int:
        """How many tokens that prompt has without its filler."""
        head, hidden, tail = self.words(self.task.draw(depth, trial))
        return len(head) + total(hidden) + total(ids for ids, _ in tail)

    def words(self, draw: Draw) -> tuple[list[int], list[list[int]], list[tuple[list[int], int]]]:
        """Tokens of what comes first, of each hidden sentence, and of each answer with the words before it and where in them it begins."""
        asked = self.task.asked(draw)
        opening, closing = self.frame(f"What is {' and '.join(f'the {thing}' for thing, _ in asked)}?")
        hidden = [self.encode(f"\nThe {thing} is {number}. Remember it. {number} is the {thing}.\n") for thing, number in draw.facts]
        leads = [closing, *[". "] * (len(asked) - 1)]
        tail = [self.answer(f"{lead}The {thing} is", number) for lead, (thing, number) in zip(leads, asked, strict=True)]
        return self.bos + self.encode(opening), hidden, tail

    def frame(self, question: str) -> tuple[str, str]:
        """The text before the filler, and that between filler and answer."""
        text = f"{INSTRUCTION}{SLOT}\n{question}"
        if self.task.chat:
            turn = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        else:
            text += " "
        opening, _, closing = text.partition(SLOT)
        return opening, closing

    def answer(self, lead: str, number: str) -> tuple[list[int], int]:
        """Tokens of `lead` and the number, as the tokenizer makes them from one text, and where the number begins.

        A space that is a token of its own belongs to the lead, one that is part of the first token of the number to the answer.
        """
        ids = self.encode(f"{lead} {number}")
        same = takewhile(lambda pair: pair[0] == pair[1], zip(ids, self.encode(f"{lead} "), strict=False))
        return ids, len(list(same))


def total(parts: Iterable[list[int]]) -> int:
    """How many tokens the parts have together."""
    return sum(map(len, parts))


def buried(hidden: list[list[int]], depths: tuple[float, ...], filler: list[int]) -> list[int]:
    """Filler with each of the parts after its share of it."""
    places = sorted(((round(depth * len(filler)), ids) for depth, ids in zip(depths, hidden, strict=True)), key=lambda place: place[0])
    found, last = [], 0
    for at, ids in places:
        found += filler[last:at] + ids
        last = at
    return found + filler[last:]
