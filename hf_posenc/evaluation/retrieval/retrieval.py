"""Retrieval by a model in memory: a grid of lengths and depths, several positional encodings side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, overload

from ...variants import STOCK, Encodings, name_of, plan_of
from ..journal import Journal
from ..measure import versions
from ..models import Plan, check_live, check_tokenizer, digest, encoded, inspect_model, live_name, weights_digest
from ..processes import Processes
from ..reach import check_position_table
from ..result import Interrupted
from ..tasks import Task, create
from ..token_nll import Progress, find_head, input_device
from .grid import Grid, Place
from .prompts import Prompt, Prompts
from .result import Cell, RetrievalResult
from .trial import Examiner, Trial


@overload
def retrieval(
    model: Any,
    tokenizer: Any,
    task: str | Task,
    lengths: Sequence[int],
    depths: Any = ...,
    trials: int = ...,
    *,
    encodings: None = ...,
    **how: Any,
) -> RetrievalResult: ...


@overload
def retrieval(
    model: Any,
    tokenizer: Any,
    task: str | Task,
    lengths: Sequence[int],
    depths: Any = ...,
    trials: int = ...,
    *,
    encodings: Encodings,
    **how: Any,
) -> dict[str, RetrievalResult]: ...


def retrieval(
    model: Any,
    tokenizer: Any,
    task: str | Task,
    lengths: Sequence[int],
    depths: float | Sequence[float] | None = None,
    trials: int = 5,
    *,
    encodings: Encodings | None = None,
    generate: bool = False,
    controls: bool = True,
    journal: str | os.PathLike | None = None,
    settings: dict[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> RetrievalResult | dict[str, RetrievalResult]:
    """Whether a model answers questions about its context, at each length and depth.

        retrieval(model, tokenizer, "niah_multikey_1", [4096, 8192])
        retrieval(model, tokenizer, "vt", [16384], encodings={"stock": {}, "yarn": {"factor": 2.0}}, generate=True)

    Scores are teacher-forced, from one forward pass for each prompt: an answer is exact where every token of it is the most likely one,
    given the true ones before it. Average perplexity hides a model that cannot use its context; this does not. The model's mode and
    gradients are left alone. Under `torchrun` or `accelerate launch` the processes share the prompts and all return the same result.

    Args:
        model: a causal language model, patched or not.
        tokenizer: the model's.
        task: a name from `evaluation.tasks.TASKS`, or a task.
        lengths: of the prompts in tokens, answers included.
        depths: where what is asked for lies, as shares of the context before it: values from 0 to 1, or how many from 0 to 1 in equal
            steps; None: chance decides in each prompt. Tasks that ask for something at several places take no notice.
        trials: prompts for each length and depth.
        encodings: None measures the model as it is; a name, names, or names with their options (`layers` among them) patch it with each
            in turn ("stock": as it was) and unpatch it. A name may bring options, "yarn:factor=4", so that one encoding can be there twice.
        generate: also let the model generate the answers greedily through its KV cache, and score them as the task's authors do.
        controls: ask the same questions with the shortest context, and with that of other questions: a score of nought is the model's
            failure where the first is answered, and any score is chance that the second reaches too.
        journal: folder that keeps what is finished, so that the same call goes on after it was killed. Delete it when the result is safe.
        settings: recorded in the result as they are.
        progress: called with a number of tokens as they are done; once through each prompt is its length.
        options: fields of the task, where it is given by its name: seed, chat, and its own.

    Returns:
        a `RetrievalResult`; with `encodings`, one for each name.

    Raises:
        CorpusError: the file of the text cannot be read.
        MissingExtra: the words of a task are in a library that is not installed.
        ValueError: an unknown task, a length that is too short for the words or beyond the model's position table, a depth outside
            0 ... 1, a tokenizer of another model or without the chat template asked for, an encoding that changes nothing.
        FloatingPointError: a loss is infinite or not a number; the message says where.
        Interrupted: Ctrl-C; it carries what was finished.
    """
    prompts = Prompts(create(task, **options) if isinstance(task, str) else task, tokenizer)
    grid = Grid.of(lengths, depths, trials).fitted(prompts, controls)
    check_tokenizer(tokenizer, model)
    plan = {STOCK: {}} if encodings is None else plan_of(encodings)
    if encodings is not None:
        check_live(model, plan)
    check_reach(model, plan, grid.lengths[-1])
    asked = Measurement(grid, prompts, generate, Processes(), None if journal is None else Path(journal), progress, settings or {})
    results = {}
    for name, chosen in plan.items():
        with encoded(model, name, chosen):
            results[name] = asked.measure(model, live_name(model) if encodings is None else name, chosen)
    return results[STOCK] if encodings is None else results


@overload
def passkey(
    model: Any, tokenizer: Any, lengths: Sequence[int], depths: Any = ..., trials: int = ..., *, encodings: None = ..., **how: Any
) -> RetrievalResult: ...


@overload
def passkey(
    model: Any, tokenizer: Any, lengths: Sequence[int], depths: Any = ..., trials: int = ..., *, encodings: Encodings, **how: Any
) -> dict[str, RetrievalResult]: ...


def passkey(
    model: Any, tokenizer: Any, lengths: Sequence[int], depths: float | Sequence[float] = 5, trials: int = 5, **how: Any
) -> RetrievalResult | dict[str, RetrievalResult]:
    """Whether a model finds a number in its context, at each length and depth: `retrieval` of the task "passkey", without controls.

        passkey(model, tokenizer, [4096, 8192])
        passkey(model, tokenizer, [16384], depths=[0.0, 0.5, 1.0], encodings={"stock": {}, "yarn": {"factor": 2.0}}, distractors=4)

    Args:
        how: what `retrieval` takes, and fields of `PasskeyTask`: digits, needles, ask, distractors, filler, chat, seed.
    """
    return retrieval(model, tokenizer, "passkey", lengths, depths, trials, **{"controls": False, **how})


def check_reach(model: Any, plan: Plan, length: int) -> None:
    """Raise ValueError where one of the encodings is not defined at this length."""
    for name, options in plan.items():
        with encoded(model, name, options):
            check_position_table(model, length)


@dataclass(frozen=True)
class Measurement:
    """What one call of `retrieval` measures with each encoding.

    Args:
        grid: which prompts.
        prompts: makes them.
        generate: also generate the answers.
        processes: those that share the prompts.
        journal: folder of the journals, or None.
        progress: called with a number of tokens as they are done.
        settings: recorded in the result.
    """

    grid: Grid
    prompts: Prompts
    generate: bool
    processes: Processes
    journal: Path | None
    progress: Progress | None
    settings: dict[str, Any]

    def measure(self, model: Any, encoding: str, options: Mapping[str, Any]) -> RetrievalResult:
        """Put all prompts to the model as it is now.

        Raises:
            Interrupted: Ctrl-C; it carries what was finished.
        """
        journal = self.open_journal(model, encoding)
        self.processes.wait()  # all have read the journal before one writes
        head = find_head(model, self.prompt(next(iter(self.grid))).input_ids)
        examiner = Examiner(model, head, self.prompts, self.generate, self.progress)
        about = {"encoding": name_of(encoding), "options": dict(options), "head": "full logits" if head is None else "chunked"}
        found: list[Trial] = []
        try:
            for trial in self.examine(examiner, journal):
                found.append(trial)
        except KeyboardInterrupt:
            asked = {*self.grid}
            known = {each.place: each for each in [*(journal.read() if journal else ()), *found] if each.place in asked}
            raise Interrupted(self.result(model, [*known.values()], complete=False, **about) if known else None) from None
        return self.result(model, self.processes.gather(found), complete=True, **about)

    def prompt(self, place: Place) -> Prompt:
        """That of a place of the grid."""
        return self.prompts.prompt(place.length, place.depth, place.index, place.context == "other")

    def open_journal(self, model: Any, encoding: str) -> Journal[Trial] | None:
        """That of this encoding; another model, encoding or task has another file. Another grid has not: what is there stays of use."""
        if self.journal is None:
            return None
        task = self.prompts.task
        identity = {"name": task.name, "template": task.template, **asdict(task), **self.prompts.filler_identity}
        settings = {
            "task": {**identity, "generate": self.generate},
            "live": inspect_model(model),
            "weights": weights_digest(model),
            "dtype": str(model.dtype),
        }
        return Journal(self.journal / f"{name_of(encoding)}-{digest(settings)}", Trial, self.processes.rank)

    def examine(self, examiner: Examiner, journal: Journal[Trial] | None) -> Iterator[Trial]:
        """A trial of each prompt of this process's share, from the journal where it is there."""
        for place in islice(self.grid, self.processes.rank, None, self.processes.count):
            prompt = self.prompt(place)
            before = journal.done.get((place.index, prompt.sha256)) if journal else None
            if before is not None:
                if self.progress is not None:
                    self.progress(before.ran)
                yield replace(before, **vars(place))
                continue
            trial = examiner.trial(prompt, place, self.processes.rank)
            if journal is not None:
                journal.add(trial)
            yield trial

    def result(self, model: Any, trials: list[Trial], complete: bool, **about: Any) -> RetrievalResult:
        """What the trials of all processes come to."""
        seconds = max(sum(each.seconds for each in trials if each.rank == rank) for rank in {each.rank for each in trials})
        order = {place: number for number, place in enumerate(self.grid)}
        cells = groupby(sorted(trials, key=lambda each: order[each.place]), key=lambda each: (each.context, each.length, each.depth))
        fingerprint, state = inspect_model(model)
        task = self.prompts.task
        return RetrievalResult(
            protocol=task.name,
            source=task.source,
            template=task.template,
            task=asdict(task),
            filler=self.prompts.filler_identity,
            bos=bool(self.prompts.bos),
            fingerprint=fingerprint,
            state=state,
            model=model.config.name_or_path or type(model).__name__,
            tokenizer=self.prompts.tokenizer.name_or_path,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(input_device(model)),
            attention=str(model.config.get_text_config()._attn_implementation),
            versions=versions(),
            cells=[Cell.of([*cell]) for _, cell in cells],
            seconds=seconds,
            tokens_per_second=sum(each.ran for each in trials) / seconds,
            peak_memory=max((each.peak_memory for each in trials if each.peak_memory is not None), default=None),
            peak_memory_kind=trials[0].peak_memory_kind,
            complete=complete,
            processes=self.processes.count,
            settings=self.settings,
            **about,
        )
