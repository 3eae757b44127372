"""What `recommend` found: numbers by encoding, the one to use, and why."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.report import optional
from ..evaluation.result import Saved
from ..tables import print_numbers
from ..variants import STOCK, name_of

HOLDS = math.log(1.03)
"""Nats that the end of a long text may be above that of one of the native length: 3 % of perplexity."""

PRESET = "yarn-400"
"""Of fine-tuning: that which needs the fewest steps."""


@dataclass
class Row:
    """One encoding.

    Args:
        options: those of the patch.
        nats: length -> mean nats of the last tokens of the texts, of which so many tokens are read.
        short: mean nats on short texts; None where they were not measured.
        key_tokens, key_nats: how many key tokens there are at the end of the longest texts, and their mean nats (LongPPL is exp of them);
            None where they were not measured.
        found, asked: needles found, and how many were asked for.
        tokens_per_second, peak_memory: of the longest text.
    """

    options: dict[str, Any]
    nats: dict[int, float] = field(default_factory=dict)
    short: float | None = None
    key_tokens: int = 0
    key_nats: float | None = None
    found: int = 0
    asked: int = 0
    tokens_per_second: float | None = None
    peak_memory: int | None = None

    @property
    def longest(self) -> int:
        """The longest text that was measured, in tokens."""
        return max(self.nats, default=0)


@dataclass
class Recommendation(Saved):
    """What was measured on one model, and what follows: `print` it.

    Args:
        model, native, length: which, its native context and the one asked for, in tokens.
        budget, seconds: what was given and taken.
        rows: by encoding; the stock model among them where it can read that far.
        chosen: the encoding to use; None where none was measured at `length`.
        refused: why others cannot be patched in. stopped: what took too long, or is not finite. not_tried: what there was no time for.
        served: engine -> "" where its export carries the encoding, else why not.
    """

    model: str
    native: int
    length: int
    budget: float
    seconds: float
    rows: dict[str, Row]
    chosen: str | None = None
    refused: dict[str, str] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    not_tried: list[str] = field(default_factory=list)
    served: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Recommendation:
        """Read what `save` wrote."""
        told = json.loads(Path(path).read_text())
        rows = {
            label: Row(**{**row, "nats": {int(length): nats for length, nats in row["nats"].items()}})
            for label, row in told["rows"].items()
        }
        return cls(**{**told, "rows": rows})

    @property
    def reference(self) -> float | None:
        """Mean nats of the same tokens, of the stock model that reads as many as its native context."""
        return self.rows[STOCK].nats.get(self.native) if STOCK in self.rows else None

    @property
    def holds(self) -> bool:
        """The chosen encoding finds all needles, and the end of the text is not above that at the native length by more than `HOLDS`."""
        row = self.rows.get(self.chosen or "")
        if row is None or self.reference is None or self.length not in row.nats:
            return False
        return row.nats[self.length] <= self.reference + HOLDS and 0 < row.asked == row.found

    @property
    def line(self) -> str:
        """Python that makes the model like this."""
        if self.chosen in (None, STOCK):
            return "# nothing to patch"
        options = "".join(f", {name}={value!r}" for name, value in self.rows[str(self.chosen)].options.items())
        return f'hf_posenc.patch(model, "{name_of(str(self.chosen))}"{options})'

    @property
    def training(self) -> str:
        """The command that estimates a published fine-tuning to this length."""
        return f"hf-posenc finetune --preset {PRESET} --model {self.model} --target_length {self.length} --estimate_only true"

    def order(self) -> list[str]:
        """The encodings, the best first."""
        return sorted(self.rows, key=lambda label: rank(self.rows[label], self.rows.get(STOCK)))

    def __str__(self) -> str:
        return "\n".join([self.line, *self.reasons()])

    def reasons(self) -> list[str]:
        """Why, what was left out, and what to do next; a sentence each."""
        said = ["nothing was measured at that length: give it more time (--budget)"] if self.chosen is None else self.of_the_chosen()
        if self.stopped:
            said.append("stopped: " + "; ".join(f"{label}, {why}" for label, why in self.stopped.items()))
        if self.not_tried:
            said.append(f"not tried within {self.budget:.3g} minutes: {', '.join(self.not_tried)}")
        return said

    def of_the_chosen(self) -> list[str]:
        """What speaks for it, and what against."""
        row, said = self.rows[str(self.chosen)], []
        if self.length in row.nats and self.reference is not None:
            ratio = math.exp(row.nats[self.length] - self.reference)
            said.append(f"perplexity of the last tokens at {self.length:,} is {ratio:.2f} x that of the stock model at {self.native:,}")
        if row.key_nats is not None:
            far = f"the {row.key_tokens} tokens that the stock model predicts far better from all of its context than from a quarter"
            said.append(f"LongPPL is {math.exp(row.key_nats):.2f}: the perplexity at {self.length:,} of {far}")
        if row.asked:
            said.append(f"{row.found} of {row.asked} needles found at {self.length:,}")
        stock = self.rows.get(STOCK)
        if row.short is not None and stock is not None and stock.short is not None and self.chosen != STOCK:
            said.append(f"on short texts its perplexity is {math.exp(row.short - stock.short):.3f} x that of the stock model")
        if not row.asked:
            said.append("there was no time to ask for needles: give it more (--budget)")
        elif not self.holds:
            said.append("that is worse than at the native length; fine-tuning may help, and this says what it takes: " + self.training)
        carried = [engine for engine, why in self.served.items() if not why]
        said.append(f"served by {', '.join(carried)} (hf-posenc export)" if carried else "no engine carries it: serve it with transformers")
        return said

    def show(self) -> None:
        """Print the table, and what follows from it."""
        lengths = sorted({length for row in self.rows.values() for length in row.nats})
        header = ["", *(f"{length:,}" for length in lengths), "LongPPL", "short", "needles", "tokens/s", "peak GB"]
        table = []
        for label in self.order():
            row = self.rows[label]
            nats = [optional(None if (value := row.nats.get(length)) is None else math.exp(value), ".2f") for length in lengths]
            short = optional(None if row.short is None else math.exp(row.short), ".2f")
            keys = optional(None if row.key_nats is None else math.exp(row.key_nats), ".2f")
            needles = f"{row.found}/{row.asked}" if row.asked else "-"
            memory = optional(None if row.peak_memory is None else row.peak_memory / 1e9, ".2f")
            table.append([label, *nats, keys, short, needles, optional(row.tokens_per_second, ".0f"), memory])
        print_numbers("perplexity of the last tokens by length, of key tokens and of short texts", header, table)
        print(self)


def rank(row: Row, stock: Row | None) -> tuple[float, ...]:
    """The less the better: not read as far, needles not found, nats at the end of the longest text with what short ones cost."""
    if not row.nats:
        return (math.inf,)
    missed = 1 - row.found / row.asked if row.asked else 1.0
    dearer = max(0.0, row.short - stock.short) if row.short is not None and stock is not None and stock.short is not None else 0.0
    return (-row.longest, missed, row.nats[row.longest] + dearer)


def best(rows: Mapping[str, Row], number: int) -> list[str]:
    """The labels of the best of those that were measured; the stock model among them if it is."""
    measured = [label for label, row in rows.items() if row.nats]
    return sorted(measured, key=lambda label: rank(rows[label], rows.get(STOCK)))[:number]
