"""The pictures of a run: nats by position before and after, and the loss while training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..plotting import Curve, dress_positions, finish, new_axes, styles

ROOM = 50
"""Points of a line that get a mark each."""


def position_figure(curves: Mapping[str, Curve], marks: Mapping[str, int]) -> Any:
    """Nats of a prediction against the position that it is made at, with marks of lengths in tokens."""
    figure, axes = new_axes()
    draw(axes, curves)
    dress_positions(axes, {stop for curve in curves.values() for stop in curve}, marks)
    return finish(figure, axes, "position (tokens), up to", "nats")


def loss_figure(curves: Mapping[str, Curve]) -> Any:
    """Losses against the step."""
    figure, axes = new_axes()
    draw(axes, curves)
    return finish(figure, axes, "step", "nats")


def draw(axes: Any, curves: Mapping[str, Curve]) -> None:
    """A line for each."""
    for (name, curve), look in zip(curves.items(), styles(), strict=False):
        axes.plot(list(curve), list(curve.values()), label=name, **look | ({"marker": ""} if len(curve) > ROOM else {}))
