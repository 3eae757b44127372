"""`hf_posenc.recommend`."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from torch.nn import ModuleList

from ..evaluation.budget import MINUTES, Budget, Say, silent
from ..evaluation.corpus import SHORT, Document, adds_bos, cut, encode_texts
from ..evaluation.kept import Kept
from ..evaluation.models import Plan, check_tokenizer, encoded
from ..evaluation.perplexity import Evaluator, KeyTokens
from ..evaluation.perplexity.perplexity import perplexity
from ..evaluation.reach import beyond_native
from ..evaluation.result import Interrupted
from ..evaluation.retrieval import passkey
from ..exporting import ENGINES, export
from ..variants import STOCK, Encodings, plan_of
from .candidates import candidates, variants
from .recommendation import Recommendation, Row, best

LAST = 1024
"""Tokens at the end of a text whose nats are looked at, or half of the native context if that is less."""
SHORT_TEXTS = 8
DEPTHS = (0.2, 0.5, 0.8)
"""Where needles lie."""
FIRST = 0.4
"""Share of the time for the first round, which all take part in as far as it reaches."""
NEAREST = 1.25
"""Times the native context: the first round is not nearer, as encodings hardly differ there."""
FINALISTS = 4
"""How many go on to the length that is asked for; half of them get variants, and half of all then are asked for needles."""
KEYS = 0.1
"""Share of the time that finding key tokens may take."""
SLOWER = 1.3
"""How many times as long as the stock model an encoding is taken to need before it was measured."""
PATIENCE = 3.0
"""How many times as long as it is taken to need a measurement may take before it is stopped."""
LEAST = 10.0
"""Seconds that each may take at least."""
MEASURED = 0.97
"""Share of the budget for measurements; the rest is for what comes before and after them."""
Measure = Callable[[], dict[str, Any]]


def recommend(
    model: Any,
    tokenizer: Any,
    length: int,
    *,
    budget: float | Budget = MINUTES,
    texts: Sequence[str] | None = None,
    encodings: Encodings = (),
    kept: str | os.PathLike | None = None,
    say: Say = silent,
) -> Recommendation:
    """Which encoding takes a model to `length` tokens without training, measured on the model and on a text.

        print(hf_posenc.recommend(model, tokenizer, 32768, budget=60))

    By successive halving. All candidates read the end of a text at the longest length for which there is time; the best go on to
    `length`, beside the best with other options; the best of those read short texts and are asked for needles. A text ends with the same
    tokens at every length, so that two lengths differ by nothing but what is read before. What there is no time for is not begun, what
    takes far longer than the others is stopped, and both are named. The model is left as it was.

    LongPPL is the perplexity, given `length` tokens, of the key tokens at the end of the texts: those that the stock model predicts far
    better from its whole native context than from a quarter of it. It says whether an encoding still uses what lies far back, which the
    perplexity of all tokens hides; the choice does not go by it. It is left out where finding key tokens would take a tenth of the time.

    Args:
        model: a causal language model, unpatched.
        tokenizer: the model's.
        length: to reach, in tokens; beyond the native context.
        budget: minutes, or a `Budget` that has begun.
        texts: to read, those that have `length` tokens; default English that every Python has.
        encodings: to try first, names with their options: factors of `hf_posenc.search`, as {"longrope": found.options}.
        kept: folder that keeps what is measured, so that the same call goes on after it was stopped.
        say: called with a line for each measurement.

    Raises:
        ValueError: a model that is patched, a length within its native context, no budget, an encoding of yours that is refused.
        CorpusError: no text is long enough.
        Interrupted: Ctrl-C; it carries what was found.
    """
    native = beyond_native(model, length)
    clock = Budget.of(budget, say)
    check_tokenizer(tokenizer, model)
    search = Search(
        model, tokenizer, length, native, documents_of(tokenizer, texts, length), clock, Kept.of_model(kept, model), plan_of(encodings)
    )
    try:
        search.run()
    except KeyboardInterrupt:
        raise Interrupted(search.result()) from None
    return search.result()


def documents_of(tokenizer: Any, texts: Sequence[str] | None, length: int) -> list[Document]:
    """Of each text that has as many, the first `length` tokens."""
    whole = encode_texts(tokenizer, texts)
    long = [document for document in whole if len(document) >= length] or whole[:1]
    return [piece for document in long for piece in cut(document, length, 1, adds_bos(tokenizer, "auto"))]


@dataclass
class Search:
    """One call of `recommend`."""

    model: Any
    tokenizer: Any
    length: int
    native: int
    documents: list[Document]
    budget: Budget
    kept: Kept
    asked_for: Plan = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    reserved: float = 0.0
    """Seconds that later rounds are to have."""
    paces: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By encoding: tokens of the longest text that was read, and the seconds it took."""
    evaluator: Evaluator | None = None
    """What has found the key tokens at the end of the texts; None where there was no time."""

    @property
    def short(self) -> int:
        """Tokens of a short text."""
        return min(SHORT, self.native // 2)

    @property
    def left(self) -> float:
        """Seconds for measurements."""
        return MEASURED * self.budget.minutes * 60 - self.budget.passed - self.reserved

    # -- the rounds -----------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All of them."""
        found, self.refused = candidates(self.model, self.length, self.asked_for)
        self.rows = {STOCK: Row({})} | {label: Row(options) for label, options in found.items()}
        self.read(STOCK, self.native)
        self.read_short(STOCK)
        self.find_keys()
        first, self.reserved = self.first(len(found)), (1 - FIRST) * self.left
        for label in found:
            self.read(label, first)
        self.reserved = 0.0
        good = self.best(found, FINALISTS, first)
        self.read_finalists(good)
        self.finish(good, 1)  # the budget may not reach the rest
        varied = {label: self.rows[label].options for label in good[: FINALISTS // 2]}
        for label, options in variants(varied, self.length, self.native, self.asked_for):
            self.rows[label] = Row(options)
            good.append(label)
            self.read(label, self.length)
        self.finish(good, FINALISTS // 2)

    def read_finalists(self, labels: Sequence[str]) -> None:
        """At the length that is asked for; the best of them is left the time to look for needles."""
        for label in labels:
            self.read(label, self.length)
            for leader in self.best(labels, 1, self.length):
                self.reserved = self.needs(leader, self.length, len(DEPTHS))
        self.reserved = 0.0

    def finish(self, labels: Iterable[str], number: int) -> None:
        """What is left to know of the best."""
        for label in self.best(labels, number, self.length):
            self.read_short(label)
            self.find(label)

    def best(self, labels: Iterable[str], number: int, length: int) -> list[str]:
        """The best of those that have read a text of that length."""
        return best({label: self.rows[label] for label in labels if length in self.rows[label].nats}, number)

    def first(self, number: int) -> int:
        """The length of the first round."""
        if STOCK not in self.paces:  # there was no time, of which a later call may have some
            return self.length
        return self.decided({"what": "first round", "number": number}, lambda: self.longest(number))

    def decided(self, what: dict[str, Any], decide: Callable[[], int]) -> int:
        """What the time decides: it is kept, or a call that goes on would decide otherwise than the one that was stopped."""
        asked = {**what, "length": self.length, "texts": [each.sha256 for each in self.documents], "budget": self.budget.minutes}
        return self.kept.get(asked, lambda: {"decided": decide()})["decided"]

    def longest(self, number: int) -> int:
        """The longest text that so many can read in the first round."""
        tokens, seconds = self.paces[STOCK]
        each = FIRST * self.left / number / len(self.documents) / SLOWER
        reached = int(tokens * math.sqrt(max(0.0, each) / seconds))
        return min(self.length, max(reached, round(NEAREST * self.native)))

    def needs(self, label: str, length: int, texts: int) -> float:
        """Seconds, as far as is known: attention is quadratic, and what was not measured is slower than the stock model."""
        tokens, seconds = self.paces.get(label) or self.paces.get(STOCK) or (length, 0.0)
        return seconds * (1.0 if label in self.paces else SLOWER) * texts * max(length / tokens, (length / tokens) ** 2)

    def time_for(self, label: str, length: int, texts: int) -> bool:
        """Whether the budget has the time."""
        return label not in self.stopped and self.needs(label, length, texts) <= self.left

    def measured(
        self, label: str, what: str, length: int, documents: list[Document], texts: int, measure: Measure
    ) -> dict[str, Any] | None:
        """What was measured before, or `measure()`; None where there is no time for it, it took too much, or has numbers that are none."""
        if not self.time_for(label, length, texts):
            return None
        patience = max(LEAST, PATIENCE * self.needs(label, length, texts)) if self.paces else self.left
        seconds = min(self.left, patience)
        try:
            with at_most(seconds, self.model):
                return self.kept.get(self.asked(label, what, length, documents), measure)
        except TooSlow:
            self.stopped[label] = f"more than {seconds:.0f} s for {texts} x {length:,} tokens"
        except FloatingPointError as error:
            if not self.paces:  # the stock model, on what it was trained for
                raise
            self.stopped[label] = str(error)
        self.budget.told(f"{label}: stopped, {self.stopped[label]}")
        return None

    def texts(self, length: int) -> list[Document]:
        """The last `length` tokens of each."""
        bos = adds_bos(self.tokenizer, "auto")
        return [document.tail(length, bos) for document in self.documents]

    # -- measurements ---------------------------------------------------------------------------------------------------------

    def find_keys(self) -> None:
        """Have the stock model read the end of the texts in long and short windows, if that takes a small share of the time."""
        if STOCK not in self.paces:
            return
        rule = KeyTokens(self.native, max(1, self.native // 4), max(1, self.native // 8), last=self.native)
        reads = sum(len(window) for protocol, length in rule.windows for window in protocol.windows(self.native, length, length))
        needed = self.needs(STOCK, self.native, len(self.documents)) * reads / self.native
        if not self.decided({"what": "key tokens", "rule": asdict(rule)}, lambda: needed <= KEYS * self.left):
            return
        evaluator, texts = Evaluator.stock(self.model, rule, self.kept.folder), self.texts(self.length)
        try:
            with at_most(min(self.left, max(LEAST, PATIENCE * needed)), self.model):
                number = sum(int(evaluator.find(document).sum()) for document in texts)
        except TooSlow:
            self.budget.told("key tokens: stopped, finding them takes too long")
            return
        self.evaluator = evaluator
        self.budget.told(f"{number} key tokens found at the end of {len(texts)} text(s)")

    def read(self, label: str, length: int) -> None:
        """The last `length` tokens of the texts; at the length that is asked for, key tokens apart."""
        row, documents = self.rows[label], self.texts(length)
        if length in row.nats:
            return
        evaluator = self.evaluator if length == self.length else None

        def measure() -> dict[str, Any]:
            how: dict[str, Any] = {"lengths": [length], "last_k": min(LAST, self.native // 2), "evaluator": evaluator}
            found = perplexity(self.model, self.tokenizer, documents, encodings={label: row.options}, **how)[label]
            (score,) = found.scores
            keys = {"key_tokens": score.key_tokens, "key_nats": score.key_nats}
            return {"nats": score.last_nats, **keys, "seconds": found.seconds, "peak_memory": found.peak_memory}

        what = "read" if evaluator is None else "read, key tokens apart"
        told = self.measured(label, what, length, documents, len(documents), measure)
        if told is None:
            return
        row.nats[length], row.peak_memory = told["nats"], told["peak_memory"]
        if evaluator is not None:
            row.key_tokens, row.key_nats = told["key_tokens"], told["key_nats"]
        row.tokens_per_second = length * len(documents) / told["seconds"]
        self.paces[label] = length, told["seconds"] / len(documents)
        self.budget.told(f"{label}: perplexity {math.exp(told['nats']):.2f} at the end of {length:,} tokens")

    def read_short(self, label: str) -> None:
        """Short texts."""
        row, ids = self.rows[label], self.documents[0].input_ids[: self.short * SHORT_TEXTS]
        documents = [Document(self.documents[0].name, part) for part in ids.split(self.short)]
        if row.short is not None:
            return

        def measure() -> dict[str, Any]:
            found = perplexity(self.model, self.tokenizer, documents, lengths=[self.short], encodings={label: row.options})[label]
            return {"nats": found.scores[0].nats}

        told = self.measured(label, "read", self.short, documents, len(documents), measure)
        if told is None:
            return
        row.short = told["nats"]
        self.budget.told(f"{label}: perplexity {math.exp(row.short):.2f} on texts of {self.short} tokens")

    def find(self, label: str) -> None:
        """Needles, in texts of the length that is asked for."""
        row = self.rows[label]
        if row.asked:
            return

        def measure() -> dict[str, Any]:
            cells = passkey(self.model, self.tokenizer, [self.length], DEPTHS, 1, encodings={label: row.options})[label].cells
            return {"found": sum(cell.exact == 1 for cell in cells), "asked": len(cells)}

        told = self.measured(label, "find", self.length, [], len(DEPTHS), measure)
        if told is None:
            return
        row.found, row.asked = told["found"], told["asked"]
        self.budget.told(f"{label}: {row.found} of {row.asked} needles found in {self.length:,} tokens")

    def asked(self, label: str, what: str, length: int, documents: list[Document]) -> dict[str, Any]:
        """All that a measurement depends on, but for the model."""
        return {
            "encoding": label,
            "options": self.rows[label].options,
            "what": what,
            "length": length,
            "texts": [each.sha256 for each in documents],
        }

    # -- what follows ---------------------------------------------------------------------------------------------------------

    def result(self) -> Recommendation:
        """What was found so far."""
        reached = self.best(self.rows, 1, self.length)
        chosen = reached[0] if reached else None
        return Recommendation(
            model=self.model.config.name_or_path or type(self.model).__name__,
            native=self.native,
            length=self.length,
            budget=self.budget.minutes,
            seconds=self.budget.passed,
            rows={label: row for label, row in self.rows.items() if row.nats},
            chosen=chosen,
            refused=self.refused,
            stopped=self.stopped,
            not_tried=[label for label, row in self.rows.items() if not row.nats and label not in self.stopped],
            served={} if chosen is None else self.served(chosen),
        )

    def served(self, label: str) -> dict[str, str]:
        """By engine, why it cannot compute this encoding; "" where it can."""
        found = {}
        with encoded(self.model, label, self.rows[label].options):
            for engine in ENGINES:
                try:
                    export(self.model, engine)
                    found[engine] = ""
                except ValueError as error:
                    found[engine] = str(error)
        return found


class TooSlow(Exception):
    """The time is over."""


@contextmanager
def at_most(seconds: float, model: Any) -> Iterator[None]:
    """Raise `TooSlow` where a layer of the model begins after so many seconds."""
    ends = time.monotonic() + seconds

    def look(*_: Any) -> None:
        if time.monotonic() > ends:
            raise TooSlow

    stacks = [module for module in model.modules() if isinstance(module, ModuleList)]
    watched = [layer.register_forward_pre_hook(look) for stack in stacks for layer in stack]
    try:
        yield
    finally:
        for each in watched:
            each.remove()
