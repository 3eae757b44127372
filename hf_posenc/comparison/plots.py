"""The pictures of a study: perplexity by length, nats by position, training loss; a band is one standard deviation over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..plotting import ceiling, clipped, dress, dress_positions, finish, from_the_top, label_clipped, new_axes, styles, usable
from .summary import Spread, Summary

Curves = Mapping[str, Mapping[int, Spread]]


def length_figure(summaries: Sequence[Summary], title: str, train_length: int, unit: str) -> Any:
    """Perplexity against context length."""
    curves = {s.label: {at: value.mean for at, value in s.perplexity.items()} for s in summaries}
    drawn = {label: usable(curve) for label, curve in curves.items() if usable(curve)}
    figure, axes = new_axes()
    top = ceiling([value for curve in drawn.values() for value in curve.values()])
    draw(axes, {s.label: s.perplexity for s in summaries}, from_the_top(drawn), top)
    label_clipped(axes, drawn, top)
    dress(axes, sorted({at for curve in drawn.values() for at in curve}), title, train_length)
    axes.set(xlabel=f"context length ({unit}s)", ylabel=f"perplexity per {unit}")
    return figure


def position_figure(summaries: Sequence[Summary], train_length: int, unit: str) -> Any:
    """Nats of a prediction against the position it is made at, in windows of the longest length."""
    figure, axes = new_axes()
    draw(axes, {s.label: s.by_position for s in summaries}, by_last_value({s.label: s.by_position for s in summaries}))
    dress_positions(axes, {stop for s in summaries for stop in s.by_position}, {"trained at": train_length})
    return finish(figure, axes, f"position ({unit}s), up to", "nats")


def loss_figure(summaries: Sequence[Summary]) -> Any:
    """Training loss against the step."""
    figure, axes = new_axes()
    curves = {s.label: s.loss for s in summaries}
    draw(axes, curves, by_last_value(curves), marker="")
    return finish(figure, axes, "step", "training loss (nats)")


def by_last_value(curves: Curves) -> list[str]:
    """Names in the order of their right ends, top first."""
    return sorted((name for name in curves if curves[name]), key=lambda name: -curves[name][max(curves[name])].mean)


def draw(axes: Any, curves: Curves, order: Sequence[str], top: float = math.inf, **changes: Any) -> None:
    """The mean lines in this order, those above `top` clipped, and the bands. A name keeps its look in all pictures."""
    looks = dict(zip(curves, styles(), strict=False))
    for name in order:
        curve, look = curves[name], {**looks[name], **changes}
        axes.plot(list(curve), [clipped(value.mean, top) for value in curve.values()], label=name, **look)
        if band := {at: (value.mean, value.std) for at, value in curve.items() if value.std is not None and value.std < value.mean}:
            low, high = ([min(mean + sign * std, 1.3 * top) for mean, std in band.values()] for sign in (-1, 1))
            axes.fill_between(list(band), low, high, color=look["color"], alpha=0.18, linewidth=0)
