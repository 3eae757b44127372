"""How vectors and encodings are measured: on what is searched on, and on what is held out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..evaluation.corpus import Document, adds_bos, cut, encode_texts
from ..evaluation.kept import Kept
from ..evaluation.models import encoded
from ..evaluation.perplexity.perplexity import perplexity
from ..evaluation.retrieval.grid import Place
from ..evaluation.retrieval.prompts import Prompt, Prompts
from ..evaluation.retrieval.trial import Examiner
from ..evaluation.tasks.passkey import PasskeyTask
from ..evaluation.token_nll import find_head
from .found import Held

Objective = Literal["perplexity", "needles"]
OBJECTIVES: tuple[Objective, ...] = ("perplexity", "needles")
HELD_OUT = 4
"""Texts that are held out, if there are as many, and prompts."""


@dataclass(frozen=True)
class Needles(PasskeyTask):
    """Numbers in a text that is at hand, all of which are asked for.

    Args:
        text: where they are hidden.
    """

    needles: int = 4
    ask: Literal["one", "all"] = "all"
    text: str = ""

    def material(self) -> str:
        return f" {self.text.strip()}"


@dataclass(frozen=True)
class Sample:
    """What is measured on.

    Args:
        texts: of the length that is asked for.
        prompts: as long, with needles in these texts; `task` makes them. None where the search does not look for needles.
    """

    texts: list[Document]
    task: Prompts | None
    prompts: list[Prompt]


def samples_of(
    tokenizer: Any, texts: Sequence[str] | None, length: int, number: int, objective: Objective, seed: int
) -> tuple[Sample, Sample]:
    """`number` texts or prompts to search on, and those that are held out.

    Raises:
        CorpusError: there are no two pieces of `length` tokens.
        ValueError: the length has no room for the needles.
    """
    read, held = halves(tokenizer, texts, length, number)
    if objective == "perplexity":
        return Sample(read, None, []), Sample(held, None, [])
    return hidden(tokenizer, read, length, number, 2 * seed), hidden(tokenizer, held, length, HELD_OUT, 2 * seed + 1)


def hidden(tokenizer: Any, texts: list[Document], length: int, number: int, seed: int) -> Sample:
    """Texts, and `number` prompts with needles in them, the first of each at depths from the start to the end."""
    text = tokenizer.decode(torch.cat([each.input_ids for each in texts]), skip_special_tokens=True)
    task = Prompts(Needles(seed=seed, text=text), tokenizer)
    return Sample(texts, task, [task.prompt(length, (at + 0.5) / number, 0) for at in range(number)])


def halves(tokenizer: Any, texts: Sequence[str] | None, length: int, number: int) -> tuple[list[Document], list[Document]]:
    """Up to `number` pieces of `length` tokens to search on, and up to `HELD_OUT` others: at least one of each."""
    bos = adds_bos(tokenizer, "auto")
    whole = encode_texts(tokenizer, texts)
    pieces = [piece for each in whole if (parts := (len(each) - bos) // (length - bos)) for piece in cut(each, length, parts, bos)]
    if len(pieces) < 2:
        pieces = cut(max(whole, key=len), length, 2, bos)  # which says what is missing
    searched = min(number, len(pieces) - 1)
    return pieces[:searched], pieces[searched:][-HELD_OUT:]


@dataclass
class Trials:
    """Measurements of one model.

    Args:
        length, native: tokens that are to be reached, and the native context.
        read, held: to search on, and held out.
        kept: what was measured before.
        pace: seconds that a text or prompt took.
    """

    model: Any
    tokenizer: Any
    length: int
    native: int
    read: Sample
    held: Sample
    kept: Kept
    pace: float = 0.0

    @property
    def each(self) -> float:
        """Seconds that a vector takes."""
        return self.pace * len(self.read.prompts or self.read.texts)

    @property
    def last(self) -> float:
        """Seconds that an encoding takes on what is held out."""
        return self.pace * (len(self.held.texts) + len(self.held.prompts))

    def score(self, name: str, options: dict[str, Any]) -> float:
        """Mean nats of what is searched on: of the answers where there are prompts, else of whole texts."""
        return self.answer(name, options, self.read) if self.read.prompts else self.texts(name, options, self.read)["nats"]

    def hold(self, name: str, options: dict[str, Any]) -> Held:
        """An encoding on what is held out."""
        told = self.texts(name, options, self.held)
        return Held(told["nats"], told["end"], self.answer(name, options, self.held) if self.held.prompts else None)

    def texts(self, name: str, options: dict[str, Any], sample: Sample) -> dict[str, float]:
        """Mean nats of all tokens of texts, and of those beyond the native context."""

        def measure() -> dict[str, float | None]:
            how: dict[str, Any] = {"lengths": [self.length], "last_k": self.length - self.native}
            (found,) = perplexity(self.model, self.tokenizer, sample.texts, **how).scores
            return {"nats": found.nats, "end": found.last_nats}

        return self.told(name, options, "texts", [each.sha256 for each in sample.texts], measure)

    def answer(self, name: str, options: dict[str, Any], sample: Sample) -> float:
        """Mean nats of the tokens of answers."""

        def measure() -> dict[str, float]:
            assert sample.task is not None
            examiner = Examiner(self.model, find_head(self.model, sample.prompts[0].input_ids), sample.task)
            found = [examiner.trial(prompt, Place(self.length, None, index), 0) for index, prompt in enumerate(sample.prompts)]
            return {"nats": sum(each.nats for each in found) / sum(each.tokens for each in found)}

        return self.told(name, options, "answers", [each.sha256 for each in sample.prompts], measure)["nats"]

    def told(self, name: str, options: dict[str, Any], what: str, of: list[str], measure: Callable[[], Any]) -> dict[str, float]:
        """What was measured before, or is now."""

        def timed() -> dict[str, Any]:
            start = time.monotonic()
            with encoded(self.model, name, options):
                return {**measure(), "seconds": (time.monotonic() - start) / len(of)}

        found = self.kept.get({"encoding": name, "options": options, "what": what, "of": of}, timed)
        self.pace = found["seconds"]
        return found
