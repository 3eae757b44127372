"""`hf-posenc search`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from ..command import exit_status
from ..evaluation.budget import BudgetArguments, begun
from ..evaluation.report import own_bar_only
from ..evaluation.result import Interrupted
from ..flags import at_least, parse
from .evolution import ITERATIONS, POPULATION
from .found import FOUND, Found
from .space import METHODS
from .trials import OBJECTIVES
from .verb import search


@dataclass
class SearchArguments(BudgetArguments):
    """Rotary factors for a length, one a pair, by the evolutionary searches of LongRoPE and LongRoPE2."""

    method: str = field(default="longrope", metadata={"help": "whose search space", "choices": METHODS})
    objective: str = field(
        default="perplexity", metadata={"help": "of whole texts, or of the answers about needles", "choices": OBJECTIVES}
    )
    population: Annotated[int, at_least(1)] = field(
        default=POPULATION, metadata={"help": "vectors that are measured before the first are chosen"}
    )
    iterations: Annotated[int, at_least(0)] = field(default=ITERATIONS, metadata={"help": "generations, of half as many vectors each"})
    samples: Annotated[int, at_least(1)] = field(default=2, metadata={"help": "texts or prompts that each vector is measured on"})
    seed: Annotated[int, at_least(0)] = field(default=0, metadata={"help": "of all that chance decides"})
    output_dir: str = field(default="runs/search", metadata={"help": "where the factors and search.json go, and what is measured"})


def main(argv: list[str] | None = None) -> int:
    """Run it; returns the exit status, 130 after Ctrl-C."""
    return exit_status(lambda: run(*parse([SearchArguments], "hf-posenc search", argv, first="model")))


@own_bar_only()
def run(arguments: SearchArguments) -> Found:
    """Search, and write down what was found, also after Ctrl-C."""
    output = Path(arguments.output_dir)
    how = {name: getattr(arguments, name) for name in ("method", "objective", "population", "iterations", "samples", "seed")}
    try:
        found = search(**begun(arguments, output), **how)
    except Interrupted as stopped:
        written(stopped.result, output)
        raise
    written(found, output)
    return found


def written(found: Found, output: Path) -> None:
    """The table, the factors and search.json."""
    found.show()
    print(f"written to {output}: {found.save(output / 'search.json').name}")
    if found.options:
        print(f"for every command: --encoding {FOUND}:{found.save_options(output / f'{FOUND}.json')}")
