"""The pictures of encodings: each draws one part of a view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..extras import extra
from ..plotting import COLOURS, new_axes, new_figure, plain, styles
from .numbers import NEAR, Row, View

NAMED = 8
"""Lines that a legend names, of more than that."""
NUMBERS = 256
"""Of an embedding that are drawn."""
WIDTH, HEIGHT = 5.6, 3.8
"""Of a part of the picture of all, in inches."""


@dataclass(frozen=True)
class Panel:
    """One kind of picture.

    Args:
        title: above it. draw: puts a view onto axes. says: what there is to see, in words.
        of: what of the view is drawn; it has no such picture where that is empty.
    """

    title: str
    draw: Callable[[Any, View], None]
    says: Callable[[View], str]
    of: Callable[[View], Any] = bool


# -- scores -----------------------------------------------------------------------------------------------------------


def draw_near(axes: Any, view: View) -> None:
    """What positions add to a score, head by head, near the query."""
    draw_heads(axes, view, view.within.upto(NEAR))
    label(axes, "distance from query to key (tokens)", "added to the score")


def draw_past(axes: Any, view: View) -> None:
    """The same over a text that is longer than the trained one, where there can be one."""
    row = view.past or view.within
    draw_heads(axes, view, row)
    if view.past is not None and not view.subject.encoding.relative:
        draw_heads(axes, view, view.within, linestyle="--", named=False)
    mark(axes.axvline, view.subject.trained)
    label(axes, f"distance from the query at {row.query:,} (tokens)", "added to the score")


def draw_heads(axes: Any, view: View, row: Row, linestyle: str = "-", named: bool = True) -> None:
    """A line for each head, or one where all are alike; the band is one standard deviation over contents."""
    with extra("report"):
        from matplotlib import colormaps

    heads, distances = range(1 if row.alike else len(row.mean)), row.distances.numpy()
    everything = "all heads" if view.subject.attends else "embeddings"
    shown = spread_over(len(heads))
    for head in heads:
        name = everything if len(heads) == 1 else f"head {head}" if head in shown else None
        colour = colormaps["viridis"](0.9 * head / (len(heads) - 1)) if len(heads) > 1 else COLOURS[0]
        axes.plot(distances, row.mean[head].numpy(), label=name if named else None, linestyle=linestyle, linewidth=1.5, color=colour)
        if row.spread is not None:
            std = (row.spread[head].square() - row.mean[head].square()).clamp(min=0).sqrt()
            low, high = (row.mean[head] + sign * std for sign in (-1, 1))
            axes.fill_between(distances, low.numpy(), high.numpy(), color=colour, alpha=0.15, linewidth=0)


def spread_over(count: int) -> set[int]:
    """Which of so many lines a legend names."""
    return {round(i * (count - 1) / (NAMED - 1)) for i in range(NAMED)}


def says_near(view: View) -> str:
    row, contents = view.within, "with the same content"
    if row.spread is not None:
        contents = "the mean over pseudo-random contents; the band is one standard deviation, so far do contents decide what position does"
    elif not view.subject.attends:
        contents = "with the same content, were queries and keys the embeddings themselves"
    heads = "one line for all heads, which are alike" if row.alike else "one line a head"
    if row.empty:
        learned = any(True for _ in view.subject.encoding.parameters())
        return "Positions add nothing to scores" + (": what is learned starts at zero, and a trained model shows more." if learned else ".")
    return f"What positions add to the score of the query at {row.query:,} for a key so far behind it, {contents}: {heads}."


def says_past(view: View) -> str:
    words = []
    if view.past is not None:
        words.append(
            f"The same for the query at {view.past.query:,}. The dotted line is the length that the model was trained for: it has never "
            "seen what stands to the right of it. Where a line ends, the query sees no more keys."
        )
        if not view.subject.encoding.relative:
            words.append("Dashed: the last query of the trained length, for which the same distances give other numbers.")
    if view.refused:
        words.append(f"Beyond, it refuses: {view.refused}")
    return " ".join(words)


# -- positions --------------------------------------------------------------------------------------------------------


def draw_similarity(axes: Any, view: View) -> None:
    """How alike positions are."""
    found = view.similarity
    step = int(found.positions[1] - found.positions[0]) if len(found.positions) > 1 else 1
    end = int(found.positions[-1]) + step
    # cividis keeps its order for every kind of colour vision and in grey (Nunez et al. 2018, arXiv 1712.01662)
    axes.figure.colorbar(axes.imshow(found.values.numpy(), cmap="cividis", extent=(0, end, end, 0)), ax=axes)
    kinds = ("position", "position") if view.embedded else ("position of the key", "position of the query")
    axes.set(xlabel=kinds[0], ylabel=kinds[1])


def says_similarity(view: View) -> str:
    found = view.similarity
    step = int(found.positions[1] - found.positions[0]) if len(found.positions) > 1 else 1
    every = "" if step == 1 else f" Every {step} tokens, over the whole length."
    return f"How alike two positions are: {found.what}.{every}"


def draw_wavelengths(axes: Any, view: View) -> None:
    """Tokens in which each pair of dimensions turns once, beside the lengths that matter."""
    shown = spread_over(len(view.wavelengths))
    for at, ((name, found), look) in enumerate(zip(view.wavelengths.items(), styles(), strict=False)):
        turning, told = found.isfinite(), {"label": name} if at in shown else {}
        axes.plot(turning.nonzero().flatten().numpy(), found[turning].numpy(), **told, **look | {"markersize": 4})
    mark(axes.axhline, view.subject.trained)
    if view.subject.promised not in (None, view.subject.trained):
        mark(axes.axhline, view.subject.promised, "asked to reach", "--")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    label(axes, "pair of dimensions", "wavelength (tokens)")


def says_wavelengths(view: View) -> str:
    slow = {name: int((found > view.subject.trained).sum()) for name, found in view.wavelengths.items()}
    shown = spread_over(len(slow))
    counts = "; ".join(f"{name}: {n} of {len(view.wavelengths[name])}" for at, (name, n) in enumerate(slow.items()) if at in shown)
    return (
        "Tokens in which each pair turns once. A pair above the dotted line does not turn once within the trained length, so that longer "
        f"texts bring angles that training has never shown, unless it is stretched. Pairs above it: {counts}."
    )


def draw_numbers(axes: Any, view: View) -> None:
    """The numbers of a token at each position."""
    assert view.embedded is not None
    found = view.embedded.becomes[:, :NUMBERS].numpy()
    most = abs(found).max()
    picture = axes.imshow(found, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    axes.figure.colorbar(picture, ax=axes)
    axes.set(xlabel="dimension", ylabel="position")


def says_numbers(view: View) -> str:
    assert view.embedded is not None
    token, added = view.embedded.token.norm(), view.embedded.added.norm(dim=-1)
    return (
        f"What the embedding of one token becomes at each position. It has length {token:.3g} itself, and what is added "
        f"{added.min():.3g} to {added.max():.3g}: the ratio says which of the two a layer reads first."
    )


PANELS = (
    Panel("Score against distance", draw_near, says_near),
    Panel("Past the trained length", draw_past, says_past),
    Panel("Similarity of positions", draw_similarity, says_similarity),
    Panel("Wavelengths against the context", draw_wavelengths, says_wavelengths, lambda view: view.wavelengths),
    Panel("What a token becomes", draw_numbers, says_numbers, lambda view: view.embedded),
)


# -- figures ----------------------------------------------------------------------------------------------------------


def panels(view: View) -> list[Panel]:
    """Those that there are of a view."""
    return [panel for panel in PANELS if panel.of(view)]


def figure_of(panel: Panel, view: View) -> Any:
    """One picture."""
    figure, axes = new_axes()
    panel.draw(axes, view)
    return figure


def figure_of_all(views: Mapping[str, View]) -> Any:
    """All of them: a row for each encoding."""
    columns = max(len(panels(view)) for view in views.values())
    figure = new_figure(WIDTH * columns, HEIGHT * len(views))
    grid = figure.subplots(len(views), columns, squeeze=False)
    for row, (name, view) in zip(grid, views.items(), strict=True):
        drawn = panels(view)
        for axes, panel in zip(row, drawn, strict=False):
            panel.draw(axes, view)
            axes.set_title(f"{name}: {panel.title[0].lower()}{panel.title[1:]}", fontsize=10)
        for axes in row[len(drawn) :]:
            axes.set_axis_off()
    return figure


def comparison(views: Mapping[str, View]) -> Any:
    """What positions add to a score in each encoding, the mean of its heads."""
    figure, axes = new_axes()
    for (name, view), look in zip(views.items(), styles(), strict=False):
        axes.plot(view.within.distances.numpy(), view.within.mean.mean(0).numpy(), label=name, **look | {"marker": ""})
    label(axes, "distance from query to key (tokens)", "added to the score, mean of heads")
    return figure


def mark(line: Callable[..., Any], at: int | None, what: str = "trained at", linestyle: Any = (0, (1, 1.5))) -> None:
    """A line at a length in tokens."""
    line(at, color="0.35", linestyle=linestyle, linewidth=1.5, label=f"{what} {at:,}", zorder=0)


def label(axes: Any, xlabel: str, ylabel: str) -> None:
    """Labels, a grid and a legend."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    plain(axes)
    axes.legend(fontsize=8, frameon=False)
