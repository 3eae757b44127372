"""Pictures of results, made from plain numbers."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from textwrap import fill
from typing import Any

from .extras import extra
from .files import replace_atomically

Curve = Mapping[int, float]
Grid = Mapping[tuple[int, float], float] | Mapping[tuple[int, str], float]

# Okabe and Ito's palette without its yellow, which is unreadable on white; with the markers it survives a black-and-white print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":")
FAR = 10
CLOSE = 3.0
"""Points of the picture between lines that the eye takes for one."""
DASH = 4.0
"""Length of a dash, in line widths, where several lines share one path."""


def plot_perplexity(
    curves: Mapping[str, Curve], path: str | os.PathLike, title: str | None = None, train_length: int | None = None
) -> Path:
    """Draw perplexity against context length, one line per name; the legend has the order of the lines' right ends.

    Values that are infinite or far off (`ceiling`) do not set the scale: they are drawn on the upper edge with an arrow and their
    numbers. Lines that lie on each other are dashed in turn. None, NaN and missing lengths are left out; a name without any value has
    no line.

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
    for name, style in zip(from_the_top(drawn), styles(), strict=False):
        axes.plot(list(drawn[name]), [clipped(value, top) for value in drawn[name].values()], label=name, **style)
    label_clipped(axes, drawn, top)
    dress(axes, sorted({length for curve in drawn.values() for length in curve}), title, train_length)
    return save(figure, Path(path))


def plot_retrieval(grid: Grid, path: str | os.PathLike, title: str | None = None, train_length: int | None = None) -> Path:
    """Draw shares of prompts answered as a heat map, context length to the right and depth or task downwards, the percentage in each cell.

    A cell without a value stays white.

    Args:
        grid: (length in tokens, depth from 0 to 1, or name of a task) -> share from 0 to 1; tasks stay in their order.
        path: the picture, in the format of its suffix; replaced in one step.
        title: above the picture.
        train_length: marked by a line between the lengths up to it and those beyond, in tokens.

    Raises:
        ValueError: there is no cell, or a value outside 0 ... 1.
    """
    if not grid or not all(0 <= share <= 1 for share in grid.values()):
        raise ValueError(f"a grid of shares from 0 to 1 is needed, got {dict(grid)}")
    found: Mapping[tuple[int, Any], float] = grid
    lengths, rows = sorted({length for length, _ in found}), [*dict.fromkeys(row for _, row in found)]
    tasks = isinstance(rows[0], str)
    rows = rows if tasks else sorted(rows)
    shares = [[found.get((length, row), math.nan) for length in lengths] for row in rows]
    figure, axes = new_axes()
    figure.set_size_inches(max(5.0, 2.2 + 0.8 * len(lengths)), max(3.0, 1.4 + 0.5 * len(rows)))
    # cividis keeps its order for every kind of colour vision and in grey (Nunez et al. 2018, arXiv 1712.01662)
    picture = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(picture, ax=axes, label="found", format=lambda share, _: f"{share:.0%}")
    for line, values in enumerate(shares):
        for column, share in enumerate(values):
            if not math.isnan(share):
                axes.text(column, line, f"{share:.0%}", ha="center", va="center", color="white" if share < 0.5 else "black")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(rows)), rows if tasks else [f"{depth:.0%}" for depth in rows])
    axes.set(xlabel="context length (tokens)", ylabel="task" if tasks else "depth of the needle", title=title and folded(title, 54))
    mark_trained(axes, lengths, train_length)
    return save(figure, Path(path))


def mark_trained(axes: Any, lengths: list[int], train_length: int | None) -> None:
    """A line after the columns of the lengths that the model was trained for, where there are others beyond."""
    within = sum(length <= train_length for length in lengths) if train_length is not None else 0
    if 0 < within < len(lengths):
        axes.axvline(within - 0.5, color="#D55E00", linewidth=3)
        axes.set_xlabel(f"{axes.get_xlabel()}; the line: trained at {train_length:,}")


def usable(curve: Curve) -> dict[int, float]:
    """The values that can be drawn, by length."""
    return {length: value for length, value in sorted(curve.items()) if value is not None and value > 0}


def ceiling(values: Iterable[float]) -> float:
    """The largest value drawn true to scale: the last one before a step by a factor of 10 that fewer than half of the values lie above."""
    finite = sorted(value for value in values if math.isfinite(value))
    steps = (value for at, value in enumerate(finite[:-1], 1) if finite[at] > FAR * value and 2 * at >= len(finite))
    return next(steps, finite[-1] if finite else 1.0)


def clipped(value: float, top: float) -> float:
    """The height at which a value is drawn."""
    return value if value <= top else top * 1.3


def from_the_top(curves: Mapping[str, Curve]) -> list[str]:
    """Names in the order of their right ends, top first; those that end earlier come last."""
    return sorted(curves, key=lambda name: (-max(curves[name]), -curves[name][max(curves[name])]))


def styles() -> Iterator[dict[str, Any]]:
    """Looks of lines that can be told apart by colour, by marker and, when the colours run out, by dashes."""
    common = {"linewidth": 1.8, "markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.6}
    for index in count():
        nth, again = index % len(COLOURS), index // len(COLOURS)
        yield {"color": COLOURS[nth], "marker": MARKERS[nth], "linestyle": DASHES[again % len(DASHES)], **common}


def tell_apart(axes: Any) -> None:
    """Let lines that lie on each other leave gaps in which the others show, and have larger marks the further below they are."""
    axes.autoscale_view()
    groups: list[list[Any]] = []
    for line in (each for each in axes.get_lines() if each.get_transform() == axes.transData):
        same = [group for group in groups if any(on_each_other(axes, line, other) for other in group)]
        groups = [*(group for group in groups if group not in same), [*(each for group in same for each in group), line]]
    for group in groups:
        for above, line in enumerate(reversed(group if group[1:] else [])):
            line.set(linestyle=(above * DASH, (DASH, DASH * (len(group) - 1))), dash_capstyle="butt")
            line.set_markersize(line.get_markersize() + min(3.0, 12 / len(group)) * above)


def on_each_other(axes: Any, line: Any, other: Any) -> bool:
    """Whether two lines are one to the eye at half of the places that both have, at least at two of them where there are two."""
    first, second = (heights(axes, each) for each in (line, other))
    shared = first.keys() & second.keys()
    close = sum(abs(first[at] - second[at]) <= CLOSE * axes.figure.dpi / 72 for at in shared)
    return close > 0 and close >= max(min(2, len(shared)), len(shared) / 2)


def heights(axes: Any, line: Any) -> dict[float, float]:
    """How high a line is drawn at each of its places, in pixels."""
    return dict(zip(line.get_xdata(), axes.transData.transform(line.get_xydata())[:, 1], strict=True))


def new_figure(width: float, height: float) -> Any:
    """A figure, in inches, that belongs to no window system and to no global state of matplotlib."""
    with extra("report"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes() -> tuple[Any, Any]:
    """A figure with one picture."""
    figure = new_figure(8, 5)
    return figure, figure.add_subplot()


def plain(axes: Any) -> None:
    """A grid, and no frame around it."""
    axes.grid(True, color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def label_clipped(axes: Any, curves: Mapping[str, Curve], top: float) -> None:
    """Write beside the upper edge what really belongs there, one line of text per value."""
    for length in sorted({length for curve in curves.values() for length in curve}):
        beyond = [f"↑ {name}: {curve[length]:.2g}" for name, curve in curves.items() if curve.get(length, 0) > top]
        if beyond:
            place = {"xytext": (-9, 4), "textcoords": "offset points", "ha": "right", "va": "top", "fontsize": 8}
            axes.annotate("\n".join(beyond), (length, clipped(math.inf, top)), **place, bbox={"fc": "white", "ec": "none", "pad": 1})


def dress(axes: Any, lengths: list[int], title: str | None, train_length: int | None) -> None:
    """Scales, ticks, labels, lines told apart, the mark of the training length and the legend."""
    with extra("report"):
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths], minor=False)
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)) if high > 6 * low else MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set(xlabel="context length (tokens)", ylabel="perplexity", title=title)
    tell_apart(axes)
    if train_length is not None:
        axes.axvline(train_length, color="0.35", linestyle=(0, (1, 1.5)), linewidth=2, label=f"trained at {train_length:,}", zorder=0)
    plain(axes)
    legend(axes)


def dress_positions(axes: Any, stops: Iterable[int], marks: Mapping[str, int]) -> None:
    """The scale of positions within a window, ticks where a doubling ends, and marks of lengths in tokens by what they are."""
    stops = sorted(stops)
    ticks = [stop for stop in stops if stop.bit_count() == 1 or stop == stops[-1]]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{stop:,}" for stop in ticks])
    axes.minorticks_off()
    for (what, at), dots in zip(marks.items(), (1.5, 4), strict=False):
        axes.axvline(at, color="0.35", linestyle=(0, (1, dots)), linewidth=2, label=f"{what} {at:,}", zorder=0)


def finish(figure: Any, axes: Any, xlabel: str, ylabel: str) -> Any:
    """Labels, lines told apart, grid and legend."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    tell_apart(axes)
    plain(axes)
    legend(axes)
    return figure


def folded(text: str, width: int) -> str:
    """The same in lines of at most `width` letters, also where it has no spaces, as the name of a file."""
    return "\n".join(fill(line, width) for line in text.split("\n"))


def legend(axes: Any) -> None:
    """What the lines are, beside the picture, which keeps its place: a long label, as that of a file, has several lines."""
    lines, labels = axes.get_legend_handles_labels()
    axes.legend(lines, [folded(label, 36) for label in labels], loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, handlelength=4)


def save(figure: Any, path: Path) -> Path:
    """Write the picture in one step: a reader never sees half of one."""
    return replace_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:] or None, dpi=160))


def data_uri(figure: Any) -> str:
    """The picture as SVG within an address, so that a page needs no other file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
