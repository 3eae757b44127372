"""The verb: pictures of what encodings do, and a page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..encodings import Geometry
from ..files import check_writable, write_atomically
from ..page import check_pages
from ..plotting import save
from ..variants import STOCK, Encodings, plan_of
from .html import page
from .numbers import View
from .plots import figure_of_all
from .subject import GEOMETRY, Subject

FOLDER = "runs/show"


@dataclass(frozen=True)
class Shown:
    """What was written, and the numbers in it by encoding. A notebook shows the picture."""

    png: Path
    html: Path
    views: dict[str, View]

    def _repr_png_(self) -> bytes:
        return self.png.read_bytes()


def show(
    encodings: Encodings = (),
    model: Any = None,
    *,
    geometry: Geometry | None = None,
    layer: int | None = None,
    output_dir: str | os.PathLike = FOLDER,
) -> Shown:
    """Draw what encodings do: scores by distance, past the trained length, similarity of positions, wavelengths, embedded tokens.

    Args:
        encodings: names as `yarn:factor=4`, or names with their options; "stock" is what is live in the model. Default that.
        model: a transformers model, patched or not, for its geometry and its learned numbers; it stays as it is.
        geometry: of the model that is taken for granted without one.
        layer: which one is looked at; default the first that has the encoding.
        output_dir: the folder for show.png and show.html, each replaced in one step.

    Raises:
        ValueError: no encoding, an unknown one, or one that the model cannot have.
        OSError: the folder cannot be written.
        ImportError: what draws is not installed.
    """
    check_pages()
    plan = plan_of(encodings or ((STOCK,) if model is not None else ()))
    if not plan:
        raise ValueError("nothing to show: name encodings (`hf-posenc list`), or give a model")
    if model is None and layer is not None:
        raise ValueError("layer= is about the layers of a model, and none is given")
    check_writable(output_dir)
    subjects = [
        Subject.alone(label, options, geometry or GEOMETRY) if model is None else Subject.within(label, options, model, layer)
        for label, options in plan.items()
    ]
    views = {subject.label: View(subject) for subject in subjects}
    folder = Path(output_dir)
    png = save(figure_of_all(views), folder / "show.png")
    html = write_atomically(folder / "show.html", page(views, f"What positional encodings do: {', '.join(views)}"))
    return Shown(png, html, views)
