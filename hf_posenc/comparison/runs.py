"""The runs of a study, and what is on disk of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..training import perplexities
from ..variants import file_name
from .arguments import CompareArguments, Variant
from .base import Base
from .data import Corpus
from .training import last_checkpoint

Result = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One encoding with one seed.

    Args:
        settings: everything that decides its numbers.
        output: the folder of the study.
    """

    variant: Variant
    seed: int
    settings: dict[str, Any] = field(hash=False)
    output: Path

    @property
    def name(self) -> str:
        """In messages."""
        return f"{self.variant.label}, seed {self.seed}"

    @property
    def stem(self) -> str:
        """Of its files; another setting gives another one."""
        key = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:10]
        return f"{file_name(self.variant.label)}-seed{self.seed}-{key}"

    @property
    def file(self) -> Path:
        """Its result."""
        return self.output / f"{self.stem}.json"

    @property
    def checkpoints(self) -> Path:
        """Of its training; gone when the result is there."""
        return self.output / self.stem

    @property
    def error(self) -> Path:
        """The traceback, where it failed."""
        return self.output / f"{self.stem}.error.txt"

    @property
    def state(self) -> str:
        """What is on disk of it."""
        if self.file.exists():
            return "done"
        if checkpoint := last_checkpoint(self.checkpoints):
            return f"at step {checkpoint.rpartition('-')[2]}"
        return "failed" if self.error.exists() else "to do"


@dataclass
class Study:
    """The runs, what they start from and see, and what was found.

    Args:
        results: of the runs that are done.
        failures: why the others are not.
    """

    arguments: CompareArguments
    base: Base
    corpus: Corpus
    runs: list[Run]
    results: dict[str, Result] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        """The folder everything goes to."""
        return Path(self.arguments.output_dir)

    def batches(self, seed: int) -> torch.Tensor:
        """What every run of this seed trains on, in its order: [steps * batch_size, L]."""
        return self.corpus.batches(seed, self.arguments.steps * self.arguments.batch_size)


def curve(result: Result) -> dict[int, float]:
    """Perplexity by context length, where there is one."""
    known = {int(length): value for length, value in result["nats"].items() if value is not None}
    return dict(zip(known, perplexities(known.values()), strict=True))
