"""What `search` found: factors, what they score, and what the encodings they began with do on text that the search has not seen."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.report import optional
from ..evaluation.result import Saved
from ..files import write_atomically
from ..tables import print_numbers

FOUND = "longrope"
"""Name of the encoding that the factors are options of, and of its row."""


@dataclass(frozen=True)
class Held:
    """One encoding on what the search has not seen.

    Args:
        nats: mean of all tokens of texts of the length that was asked for.
        end: of those beyond the native context alone.
        answer: of answers about needles; None where the search did not look for needles.
    """

    nats: float
    end: float
    answer: float | None = None

    def score(self, objective: str) -> float:
        """What the search looks at: the less the better."""
        return self.nats if objective == "perplexity" or self.answer is None else self.answer


@dataclass
class Found(Saved):
    """Factors for one model: `print` it.

    Args:
        model, native, length: which, its native context and the one asked for, in tokens.
        method, objective, seed, population, iterations: how it was searched.
        budget, seconds: what was given, in minutes, and taken.
        options: of `longrope`; none where there was no time to measure anything.
        measured: how many vectors were.
        scores: on the texts or needles of the search, in nats: of the encodings that it began with, as one table for all lengths and
            within the space of the method, and of what it found.
        held: on others: of what it found, and of the encodings as they are.
    """

    model: str
    native: int
    length: int
    method: str
    objective: str
    seed: int
    population: int
    iterations: int
    budget: float
    seconds: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    measured: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Found:
        """Read what `save` wrote."""
        told = json.loads(Path(path).read_text())
        return cls(**{**told, "held": {label: Held(**held) for label, held in told["held"].items()}})

    @property
    def best_other(self) -> str | None:
        """The best of the others on what the search has not seen."""
        others = {label: held.score(self.objective) for label, held in self.held.items() if label != FOUND}
        return min(others, key=others.__getitem__, default=None)

    @property
    def gain(self) -> float | None:
        """Nats that what was found is below the best of the others, on what the search has not seen; negative where it is above."""
        if FOUND not in self.held or self.best_other is None:
            return None
        return self.held[self.best_other].score(self.objective) - self.held[FOUND].score(self.objective)

    @property
    def line(self) -> str:
        """Python that makes the model like this."""
        if not self.options:
            return "# nothing was found"
        return f'hf_posenc.patch(model, "{FOUND}", {", ".join(f"{name}={value!r}" for name, value in self.options.items())})'

    def save_options(self, path: str | os.PathLike) -> Path:
        """Write the options as JSON, for `--encoding longrope:FILE` and `patch(model, "longrope", **json.load(file))`."""
        if not self.options:
            raise ValueError("there are no factors to write: give the search more time (budget)")
        return write_atomically(path, json.dumps(self.options, indent=1) + "\n")

    def __str__(self) -> str:
        return "\n".join([self.line, *self.reasons()])

    def reasons(self) -> list[str]:
        """What it is worth; a sentence each."""
        if not self.options:
            return ["nothing was measured: give it more time (--budget)"]
        said = [f"{self.measured} vectors of factors were measured in {self.seconds / 60:.1f} of {self.budget:.3g} minutes"]
        if self.gain is None:
            return [*said, "there was no time to compare it on what the search has not seen: give it more (--budget)"]
        ratio = math.exp(-self.gain)
        what = "perplexity" if self.objective == "perplexity" else "perplexity of the answers"
        said.append(f"on what the search has not seen, its {what} is {ratio:.4f} x that of {self.best_other}, the best of the others")
        if self.gain <= 0:
            said.append(f"that is no better: use {self.best_other}, or search longer or on more texts (--samples)")
        return said

    def show(self) -> None:
        """Print the table, and what follows from it."""
        rows = []
        for label in dict.fromkeys([*self.scores, *self.held]):
            held = self.held.get(label)
            numbers = [self.scores.get(label), *((None,) * 3 if held is None else (held.nats, held.end, held.answer))]
            rows.append([label, *(optional(None if each is None else math.exp(each), ".3f") for each in numbers)])
        header = ["", "searched", "held out", f"beyond {self.native:,}", "answers"]
        print_numbers(f"perplexity at {self.length:,} tokens: of what was searched on, and of what was held out", header, rows)
        print(self)
