"""Pictures of results, made from plain numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

Curve = Mapping[int, float]

# Okabe and Ito's palette without its yellow, which is unreadable on white; with the markers it survives a black-and-white print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
DASHES = ("-", "--", "-.")


def plot_perplexity(
    curves: Mapping[str, Curve], path: str | os.PathLike, title: str | None = None, train_length: int | None = None
) -> Path:
    """Draw perplexity against context length, one line per name, best at the longest length first in the legend.

    Values that are infinite, or so large that they would flatten everything else, are drawn on the upper edge with their number beside them.
    NaN and missing lengths are left out: a name without any value appears in no line.

    Args:
        curves: name -> {length in tokens: perplexity}.
        path: the picture, in the format of its suffix; replaced in one step.
        title: above the picture.
        train_length: marked by a vertical line, in tokens.

    Raises:
        ValueError: no curve has a value.
    """
    drawn = {name: usable(curve) for name, curve in curves.items() if usable(curve)}
    if not drawn:
        raise ValueError("there is nothing to plot: no curve has a value")
    figure, axes = new_axes()
    top = ceiling(value for curve in drawn.values() for value in curve.values())
    styles = zip(by_longest(drawn), cycle(COLOURS), cycle(MARKERS), strict=False)
    for index, (name, colour, marker) in enumerate(styles):
        draw(axes, name, drawn[name], top, color=colour, marker=marker, linestyle=DASHES[index // len(COLOURS) % len(DASHES)])
    dress(axes, sorted({length for curve in drawn.values() for length in curve}), title, train_length)
    return save(figure, Path(path))


def usable(curve: Curve) -> dict[int, float]:
    """The values that can be drawn, by length."""
    return {length: value for length, value in sorted(curve.items()) if value is not None and value > 0}


def ceiling(values: Iterable[float]) -> float:
    """The largest value drawn true to scale: at most 1,000 times the smallest."""
    finite = [value for value in values if math.isfinite(value)]
    return min(max(finite), 1_000 * min(finite)) if finite else 1.0


def by_longest(curves: Mapping[str, Curve]) -> list[str]:
    """Names by the value at their longest length, curves that reach further first."""
    return sorted(curves, key=lambda name: (-max(curves[name]), curves[name][max(curves[name])]))


def new_axes() -> tuple[Any, Any]:
    """A figure that belongs to no window system and to no global state of matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def draw(axes: Any, name: str, curve: Curve, top: float, **style: Any) -> None:
    """One line; values above `top` are lowered to the edge and labelled."""
    edge = top * 1.15
    heights = [min(value, edge) if value > top else value for value in curve.values()]
    axes.plot(list(curve), heights, label=name, linewidth=1.8, markersize=6.5, markeredgecolor="white", markeredgewidth=0.6, **style)
    for length, value in curve.items():
        if value > top:
            axes.annotate(f"{name}: {value:.2g}", (length, edge), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)


def dress(axes: Any, lengths: list[int], title: str | None, train_length: int | None) -> None:
    """Scales, ticks, labels, the mark of the training length and the legend."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths], minor=False)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="context length (tokens)", ylabel="perplexity", title=title)
    if train_length is not None:
        axes.axvline(train_length, color="0.45", linestyle=":", linewidth=1.5, label=f"trained at {train_length:,}", zorder=0)
    axes.grid(True, color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def save(figure: Any, path: Path) -> Path:
    """Write the picture beside its place, then move it there: a reader never sees half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(partial, dpi=160)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
