"""The runs of an encoding over all seeds as mean and standard deviation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .runs import Study, curve


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over seeds; the latter is None for one seed."""

    mean: float
    std: float | None
    count: int

    def __str__(self) -> str:
        return shown(self.mean) if self.std is None else f"{shown(self.mean)} ± {shown(self.std)}"


def shown(value: float) -> str:
    """With two decimals, or two digits where it is large."""
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.1e}"


def spread(values: Iterable[float]) -> Spread:
    """Of at least one value."""
    known = list(values)
    mean = math.fsum(known) / len(known)
    std = None if len(known) < 2 else statistics.stdev(known) if all(map(math.isfinite, known)) else math.inf
    return Spread(mean, std, len(known))


@dataclass(frozen=True)
class Summary:
    """What was found of one encoding.

    Args:
        label: how it was asked for.
        perplexity: by context length.
        by_position: nats by the end of a range of positions.
        loss: training loss in nats, by step.
        seconds: of a training.
        parameters: of the model.
        fingerprints: of what was live in the model after training, one a seed.
    """

    label: str
    perplexity: dict[int, Spread]
    by_position: dict[int, Spread]
    loss: dict[int, Spread]
    seconds: float
    parameters: int
    fingerprints: list[str]

    @property
    def longest(self) -> int | None:
        """The longest length it is defined at, where `by_position` was measured; None where there is none."""
        return max(self.perplexity, default=None)


def summarize(study: Study) -> list[Summary]:
    """One summary for each encoding with a result, in the order they were asked for."""
    labels = dict.fromkeys(each.variant.label for each in study.runs)
    found = {label: [r for r in study.results.values() if r["settings"]["encoding"] == label] for label in labels}
    return [summary(label, results) for label, results in found.items() if results]


def summary(label: str, results: Sequence[Mapping[str, Any]]) -> Summary:
    """Of the runs of one encoding."""
    return Summary(
        label=label,
        perplexity=spreads(curve(dict(result)) for result in results),
        by_position=spreads({stop: nats for _, stop, nats in result["by_position"]} for result in results),
        loss=spreads({int(step): nats for step, nats in result["train_loss"].items()} for result in results),
        seconds=statistics.fmean(result["train_seconds"] for result in results),
        parameters=results[0]["parameters"],
        fingerprints=[str(result["fingerprint"]) for result in results],
    )


def spreads(curves: Iterable[Mapping[int, float]]) -> dict[int, Spread]:
    """Of curves, at every point that one of them has."""
    points: dict[int, list[float]] = {}
    for each in curves:
        for at, value in each.items():
            points.setdefault(at, []).append(value)
    return {at: spread(values) for at, values in sorted(points.items())}
