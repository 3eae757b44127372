"""`hf-posenc recommend`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from ..command import exit_status
from ..evaluation.budget import BudgetArguments, begun
from ..evaluation.report import own_bar_only, pictures
from ..evaluation.result import Interrupted
from ..flags import parse
from ..variants import read_plan
from .recommendation import Recommendation
from .verb import recommend


@dataclass
class RecommendArguments(BudgetArguments):
    """Which encoding takes a model to a length without training: measured on the model, within a budget of time."""

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
    output, encodings = Path(arguments.output_dir), read_plan(arguments.encoding)
    try:
        found = recommend(**begun(arguments, output), encodings=encodings)
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
