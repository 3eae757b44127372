"""`hf-posenc recommend`."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from ..command import exit_status
from ..encodings.options import positive
from ..evaluation.budget import announced
from ..evaluation.corpus import read_texts
from ..evaluation.kept import FOLDER
from ..evaluation.models import ModelArguments, load_model, load_tokenizer
from ..evaluation.report import own_bar_only, pictures
from ..evaluation.result import Interrupted
from ..files import check_writable
from ..flags import at_least, parse
from ..inspection import inspect
from .recommendation import Recommendation
from .verb import recommend


@dataclass
class RecommendArguments(ModelArguments):
    """Which encoding takes a model to a length without training: measured on the model, within a budget of time."""

    length: Annotated[int | None, at_least(2)] = field(
        default=None, metadata={"help": "to reach, in tokens; default twice the native context"}
    )
    budget: Annotated[float, positive] = field(default=20.0, metadata={"help": "minutes"})
    text: list[str] = field(default_factory=list, metadata={"help": "files to read, UTF-8; default English that every Python has"})
    encoding: list[str] = field(
        default_factory=list,
        metadata={"help": "to try first, with options as yarn:factor=4, or in a file as longrope:runs/search/longrope.json"},
    )
    output_dir: str = field(default="runs/recommend", metadata={"help": "where recommend.json and recommend.png go, and what is measured"})


def main(argv: list[str] | None = None) -> int:
    """Run it; returns the exit status, 130 after Ctrl-C."""
    return exit_status(lambda: run(*parse([RecommendArguments], "hf-posenc recommend", argv, first="model")))


@own_bar_only()
def run(arguments: RecommendArguments) -> Recommendation:
    """Measure, and write down what follows, also after Ctrl-C."""
    output, begun = Path(arguments.output_dir), time.monotonic()
    check_writable(output)
    texts = read_texts(arguments.text) if arguments.text else None
    tokenizer = load_tokenizer(arguments.path)
    model = load_model(arguments.path, arguments)
    length = arguments.length or 2 * (inspect(model).context_length or 0)
    if arguments.overwrite:
        shutil.rmtree(output / FOLDER, ignore_errors=True)
    budget = max(arguments.budget - (time.monotonic() - begun) / 60, 1e-9)
    try:
        found = recommend(model, tokenizer, length, budget=budget, texts=texts, encodings=arguments.encoding, kept=output, say=announced)
    except Interrupted as stopped:
        written(stopped.result, output)
        raise
    written(found, output)
    return found


def written(found: Recommendation, output: Path) -> None:
    """The table, recommend.json and recommend.png."""
    from ..plotting import plot_perplexity

    found.show()
    print(f"written to {output}: {found.save(output / 'recommend.json').name}")
    curves = {label: {length: math.exp(nats) for length, nats in row.nats.items()} for label, row in found.rows.items()}
    if not curves:
        return
    with pictures():
        print(plot_perplexity(curves, output / "recommend.png", "perplexity of the last tokens", found.native))
