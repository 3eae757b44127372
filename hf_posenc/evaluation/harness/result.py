"""What the harness says of one encoding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..result import Saved

STDERR = "_stderr"


@dataclass
class HarnessResult(Saved):
    """Scores of one encoding.

    Args:
        scores: task -> metric with its filter, as "acc,none" -> value, as lm-eval gives them.
        errors: the same, standard errors; without those that lm-eval cannot say.
        samples: task -> how many questions were asked.
        versions: of the tasks, and of what they were measured with.
        settings: everything that the scores depend on.
        live: the positional encoding that was live in the model.
        seconds: of the whole.
    """

    scores: dict[str, dict[str, float]]
    errors: dict[str, dict[str, float]]
    samples: dict[str, int]
    versions: dict[str, Any]
    settings: dict[str, Any]
    live: str | None
    seconds: float
    complete: bool = True

    @classmethod
    def load(cls, path: str | Path) -> HarnessResult:
        """Read what `save` wrote."""
        return cls(**json.loads(Path(path).read_text()))

    def rows(self, encoding: str) -> list[dict[str, Any]]:
        """One for each task and metric."""
        return [
            {"encoding": encoding, "task": task, "metric": metric, "value": value, "stderr": self.errors.get(task, {}).get(metric)}
            for task, metrics in self.scores.items()
            for metric, value in metrics.items()
        ]


def read(results: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """The values and the standard errors in what lm-eval says of tasks: "acc_stderr,none" is of "acc,none"."""
    values: dict[str, dict[str, float]] = {}
    errors: dict[str, dict[str, float]] = {}
    for task, metrics in results.items():
        for key, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or "," not in key:
                continue
            name, _, kind = key.partition(",")
            found = errors if name.endswith(STDERR) else values
            found.setdefault(task, {})[f"{name.removesuffix(STDERR)},{kind}"] = float(value)
    return values, errors
