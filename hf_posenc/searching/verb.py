"""`hf_posenc.search`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from ..encodings import Geometry
from ..encodings.options import count, one_of
from ..evaluation.budget import MINUTES, Budget, Say, silent
from ..evaluation.kept import Kept
from ..evaluation.models import check_live, check_tokenizer
from ..evaluation.reach import beyond_native
from ..evaluation.result import Interrupted
from ..exporting.rotation import geometries_of
from ..patching import patch_of
from .evolution import ITERATIONS, POPULATION, Evolution
from .found import FOUND, Found
from .space import METHODS, SEEDS, Method, Space, Vector
from .trials import OBJECTIVES, Objective, Trials, samples_of


class Spent(Exception):
    """The budget is."""


def search(
    model: Any,
    tokenizer: Any,
    length: int,
    *,
    budget: float | Budget = MINUTES,
    texts: Sequence[str] | None = None,
    method: Method = "longrope",
    objective: Objective = "perplexity",
    population: int = POPULATION,
    iterations: int = ITERATIONS,
    samples: int = 2,
    seed: int = 0,
    kept: str | os.PathLike | None = None,
    say: Say = silent,
) -> Found:
    """Rotary factors, one a pair, that take a model to `length` tokens without training, by evolution as in LongRoPE and LongRoPE2.

        found = hf_posenc.search(model, tokenizer, 16384, budget=60)
        hf_posenc.patch(model, "longrope", **found.options)

    It begins with the factors of YaRN, NTK-aware scaling, LongRoPE2's theory and linear interpolation, and ends with a comparison on texts
    that it has not seen. What it finds is one table for texts of all lengths, so that `save_pretrained` writes a stock checkpoint
    (`rope_type` "longrope") and engines serve it. The model is left as it was.

    Differs from the papers: the factor on cos and sin is searched too, as each encoding has another; no initial tokens are left as they
    were, as in all released models, because stock transformers cannot express it.

    Args:
        model: a causal language model, unpatched.
        tokenizer: the model's.
        length: to reach, in tokens; beyond the native context.
        budget: minutes, or a `Budget` that has begun.
        texts: to read, in pieces of `length` tokens, some of which are held out; default English that every Python has.
        method: "longrope": all factors are free from 1 to 1.25 s; "longrope2": those of the slow pairs are, from s to 2 s, and the others
            follow (`Space`).
        objective: "perplexity" of whole texts (LongRoPE), or "needles": of the answers about numbers hidden in them alone (LongRoPE2).
        population, iterations: of the evolution (`Evolution`). The papers have 64 and 40.
        samples: texts or prompts that each vector is measured on. The papers have 5.
        seed: of all that chance decides.
        kept: folder that keeps what is measured, so that the same call goes on after it was stopped.
        say: called with a line for each measurement.

    Raises:
        ValueError: a model that is patched, or has no rotation or several, or scales it already; a length within its native context; no
            budget; an unknown method or objective.
        CorpusError: there are no two pieces of `length` tokens.
        Interrupted: Ctrl-C; it carries what was found.
    """
    one_of("method", method, METHODS)
    one_of("objective", objective, OBJECTIVES)
    for name, value, least in (("population", population, 1), ("iterations", iterations, 0), ("samples", samples, 1), ("seed", seed, 0)):
        count(name, value, least)
    native = beyond_native(model, length)
    clock = Budget.of(budget, say)
    check_tokenizer(tokenizer, model)
    space = Space(geometry_of(model), length, method)
    seeds = space.seeds()
    check_live(model, {FOUND: next(iter(seeds.values())).options(length)})
    read, held = samples_of(tokenizer, texts, length, samples, objective, seed)
    trials = Trials(model, tokenizer, length, native, read, held, Kept.of_model(kept, model))
    found = Found(
        model=model.config.name_or_path or type(model).__name__,
        native=native,
        length=length,
        method=method,
        objective=objective,
        seed=seed,
        population=population,
        iterations=iterations,
        budget=clock.minutes,
    )
    return Search(space, seeds, trials, clock, found).run()


def geometry_of(model: Any) -> Geometry:
    """Of all layers that rotate.

    Raises:
        ValueError: there are none, or they turn differently.
    """
    found = [*geometries_of(patch_of(model)).values()]
    if not found:
        raise ValueError(f"a {model.config.model_type} model has no rotation of its own, whose factors could be searched")
    if any(other != found[0] for other in found[1:]):
        raise ValueError("layers of several kinds turn differently here: one set of factors does not suit all of them")
    return found[0]


@dataclass
class Search:
    """One call of `search`, which fills in what is `found`."""

    space: Space
    seeds: dict[str, Vector]
    trials: Trials
    clock: Budget
    found: Found
    evolution: Evolution = field(init=False)

    def __post_init__(self) -> None:
        self.evolution = Evolution(self.space, self.measure, Random(self.found.seed), self.found.population)

    def run(self) -> Found:
        """Search while there is time, and compare what was found with the encodings it began with."""
        try:
            with suppress(Spent):
                self.evolution.run([*self.seeds.values()], self.found.iterations)
            self.choose()
            self.compare()
        except KeyboardInterrupt:
            self.choose()
            raise Interrupted(self.found) from None
        return self.found

    def measure(self, vector: Vector) -> float:
        """The score of a vector, if there is the time for it and for the comparison after it: how much that is, the second one tells."""
        before = self.evolution.scores
        if self.clock.left < self.trials.each + (self.trials.last * (1 + len(SEEDS)) if len(before) > 1 else 0.0):
            raise Spent
        score = self.trials.score(FOUND, vector.options(self.space.length))
        name = next((label for label, seed in self.seeds.items() if seed == vector), f"vector {len(before) + 1}")
        self.clock.told(f"{name}: perplexity {math.exp(score):.4f}, the best so far {math.exp(min([score, *before.values()])):.4f}")
        return score

    def choose(self) -> None:
        """The best of the vectors."""
        scores, found = self.evolution.scores, self.found
        found.measured, found.seconds = len(scores), self.clock.passed
        found.scores = {label: scores[seed] for label, seed in self.seeds.items() if seed in scores}
        for best in self.evolution.best(1):
            found.options, found.scores[FOUND] = best.options(self.space.length), scores[best]

    def compare(self) -> None:
        """What was found first, then the encodings, on what is held out, while there is time."""
        for label, options in [(FOUND, self.found.options), *((name, {"factor": self.space.stretch}) for name in SEEDS)]:
            if options is None or self.clock.left < self.trials.last:
                break
            self.found.held[label] = self.trials.hold(label, options)
            self.clock.told(f"{label}: perplexity {math.exp(self.found.held[label].nats):.4f} on texts that are held out")
        self.found.seconds = self.clock.passed
