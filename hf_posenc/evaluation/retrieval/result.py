"""What a run found, and everything needed to read the numbers a year later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..result import Saved
from .grid import Context
from .trial import Trial


@dataclass(frozen=True)
class Cell:
    """The trials at one length and depth.

    Args:
        length: of the prompts in tokens, answers included.
        depth: share of the context before what is asked for; None where chance decides, or there is no such place.
        context: which one the prompts have.
        trials: how many prompts.
        scores: of each: the score of the generated answer where there is one, else the share of its answers that are exact.
        exact: share of them in which every token of the answers is the most likely one, given the true ones before it.
        token_accuracy: share of the answers' tokens that are.
        nats: of the answers of a prompt, all their tokens together, on average.
        generated: mean score of the answers of greedy generation; None where it was not asked for.
        seconds: of all of them.
    """

    length: int
    depth: float | None
    context: Context
    trials: int
    scores: list[float]
    exact: float
    token_accuracy: float
    nats: float
    generated: float | None
    seconds: float

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> Cell:
        """What the trials of one cell come to."""
        count = len(trials)
        return cls(
            length=trials[0].length,
            depth=trials[0].depth,
            context=trials[0].context,
            trials=count,
            scores=[each.score for each in trials],
            exact=sum(each.exact for each in trials) / count,
            token_accuracy=sum(each.correct for each in trials) / sum(each.tokens for each in trials),
            nats=sum(each.nats for each in trials) / count,
            generated=None if trials[0].generated is None else sum(each.generated or 0.0 for each in trials) / count,
            seconds=sum(each.seconds for each in trials),
        )


@dataclass(frozen=True)
class RetrievalResult(Saved):
    """One task, one encoding: the grid over lengths and depths, and what was measured how, with what.

    Args:
        template: version of the words of the prompts.
        protocol: the name of the task, `source` whose it is, and `task` its fields.
        filler: tokens and hash of the text or words that contexts are made of, in this tokenizer's tokens.
        bos: whether prompts begin with a BOS token of their own.
        head: "chunked" where the output layer saw the answers only, or "full logits" where the model's own forward had to be used.
        encoding: the name asked for ("stock": the model as it was loaded) and `options` its options.
        fingerprint: hash of the tensors that are live in the model, from `hf_posenc.inspect`; None where it cannot be inspected.
        state: what `hf_posenc.inspect` says, in words.
        cells: one `Cell` for each length and depth, those with a context that is not whole first, then lengths ascending, then depths.
        complete: False where the run was interrupted: cells are missing then, or have fewer trials.
        processes: how many processes shared the prompts.
        seconds, tokens_per_second: of the slowest process, and of all of them.
        peak_memory: bytes in the largest process, and `peak_memory_kind` what was measured.
        settings: free for the caller (the recipe stores its arguments).
    """

    protocol: str
    source: str
    template: int
    task: dict[str, Any]
    filler: dict[str, Any]
    bos: bool
    head: str
    encoding: str
    options: dict[str, Any]
    fingerprint: str | None
    state: str | None
    model: str
    tokenizer: str
    dtype: str
    device: str
    attention: str
    versions: dict[str, str]
    cells: list[Cell]
    seconds: float
    tokens_per_second: float
    peak_memory: int | None
    peak_memory_kind: str | None
    complete: bool = True
    processes: int = 1
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        """Those of the grid, ascending."""
        return sorted({cell.length for cell in self.whole()})

    def whole(self, length: int | None = None) -> list[Cell]:
        """The cells of the grid, or those of a length."""
        return [cell for cell in self.cells if cell.context == "whole" and length in (None, cell.length)]

    def control(self, context: Context) -> list[Cell]:
        """The cells with a short context, or with another."""
        return [cell for cell in self.cells if cell.context == context]

    def found(self, length: int) -> tuple[int, int]:
        """How many prompts of a length were answered exactly, of how many."""
        cells = self.whole(length)
        return round(sum(cell.exact * cell.trials for cell in cells)), sum(cell.trials for cell in cells)

    def mean(self, score: str, length: int) -> float | None:
        """One of the numbers of the cells of a length, over their prompts; None where a cell has none."""
        cells = self.whole(length)
        values = [getattr(cell, score) for cell in cells]
        if not cells or None in values:
            return None
        return sum(value * cell.trials for value, cell in zip(values, cells, strict=True)) / sum(cell.trials for cell in cells)

    def scores(self) -> dict[int, list[float]]:
        """length -> the score of each of its prompts."""
        return {length: [score for cell in self.whole(length) for score in cell.scores] for length in self.lengths}

    def grid(self, score: str = "exact") -> dict[tuple[int, float], float]:
        """(length, depth) -> one of the numbers of its cell."""
        return {(cell.length, cell.depth): getattr(cell, score) for cell in self.whole() if cell.depth is not None}

    @classmethod
    def load(cls, path: str | Path) -> RetrievalResult:
        """Read what `save` wrote."""
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(cells=[Cell(**cell) for cell in found.pop("cells")], **found)
