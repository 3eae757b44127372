"""Passkey retrieval of a model in memory: a grid of lengths and depths, several positional encodings side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from ..token_nll import Progress, find_head, input_device
from .grid import Grid
from .prompts import TEMPLATE, PasskeyTask, Prompts
from .result import Cell, PasskeyResult
from .trial import Examiner, Trial


@overload
def passkey(
    model: Any, tokenizer: Any, lengths: Sequence[int], depths: Any = ..., trials: int = ..., *, encodings: None = ..., **how: Any
) -> PasskeyResult: ...


@overload
def passkey(
    model: Any, tokenizer: Any, lengths: Sequence[int], depths: Any = ..., trials: int = ..., *, encodings: Encodings, **how: Any
) -> dict[str, PasskeyResult]: ...


def passkey(
    model: Any,
    tokenizer: Any,
    lengths: Sequence[int],
    depths: int | Sequence[float] = 5,
    trials: int = 5,
    *,
    encodings: Encodings | None = None,
    generate: bool = False,
    journal: str | os.PathLike | None = None,
    settings: dict[str, Any] | None = None,
    progress: Progress | None = None,
    **task: Any,
) -> PasskeyResult | dict[str, PasskeyResult]:
    """Whether a model finds a number in its context, at each length and depth (`PasskeyTask` says what the prompts are).

        passkey(model, tokenizer, [4096, 8192])
        passkey(model, tokenizer, [16384], depths=[0.0, 0.5, 1.0], encodings={"stock": {}, "yarn": {"factor": 2.0}}, distractors=4)

    Scores are teacher-forced, from one forward pass for each prompt: a prompt counts as exact where every token of the answer is the
    most likely one, given the true ones before it. Average perplexity hides a model that cannot use its context; this does not. The
    model's mode and gradients are left alone. Under `torchrun` or `accelerate launch` the processes share the prompts and all return
    the same result.

    Args:
        model: a causal language model, patched or not.
        tokenizer: the model's.
        lengths: of the prompts in tokens, answers included.
        depths: where the needle lies, as shares of the filler before it: values from 0 to 1, or how many from 0 to 1 in equal steps.
        trials: prompts for each length and depth.
        encodings: None measures the model as it is; a name, names, or names with their options (`layers` among them) patch it with each
            in turn ("stock": as it was) and unpatch it. A name may bring options, "yarn:factor=4", so that one encoding can be there twice.
        generate: also let the model generate the answers greedily through its KV cache, and compare their digits.
        journal: folder that keeps what is finished, so that the same call goes on after it was killed. Delete it when the result is safe.
        settings: recorded in the result as they are.
        progress: called with a number of tokens as they are done; once through each prompt is its length.
        task: fields of `PasskeyTask`: digits, needles, ask, distractors, filler, chat, seed.

    Returns:
        a `PasskeyResult`; with `encodings`, one for each name.

    Raises:
        CorpusError: the file of the filler cannot be read.
        ValueError: a length that is too short for the words or beyond the model's position table, a depth outside 0 ... 1, a tokenizer
            of another model or without the chat template asked for, an encoding that changes nothing.
        FloatingPointError: a loss is infinite or not a number; the message says where.
        Interrupted: Ctrl-C; it carries what was finished.
    """
    prompts = Prompts(PasskeyTask(**task), tokenizer)
    grid = Grid.of(lengths, depths, trials)
    grid.check(prompts)
    check_tokenizer(tokenizer, model)
    plan = {STOCK: {}} if encodings is None else plan_of(encodings)
    if encodings is not None:
        check_live(model, plan)
    check_reach(model, plan, grid.lengths[-1])
    asked = Measurement(grid, prompts, generate, Processes(), None if journal is None else Path(journal), progress, settings or {})
    results = {}
    for name, options in plan.items():
        with encoded(model, name, options):
            results[name] = asked.measure(model, live_name(model) if encodings is None else name, options)
    return results[STOCK] if encodings is None else results


def check_reach(model: Any, plan: Plan, length: int) -> None:
    """Raise ValueError where one of the encodings is not defined at this length."""
    for name, options in plan.items():
        with encoded(model, name, options):
            check_position_table(model, length)


@dataclass(frozen=True)
class Measurement:
    """What one call of `passkey` measures with each encoding.

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

    def measure(self, model: Any, encoding: str, options: Mapping[str, Any]) -> PasskeyResult:
        """Put all prompts to the model as it is now.

        Raises:
            Interrupted: Ctrl-C; it carries what was finished.
        """
        journal = self.open_journal(model, encoding)
        self.processes.wait()  # all have read the journal before one writes
        head = find_head(model, self.prompts.prompt(*next(iter(self.grid))).input_ids)
        examiner = Examiner(model, head, self.prompts, self.generate, self.progress)
        about = {"encoding": name_of(encoding), "options": dict(options), "head": "full logits" if head is None else "chunked"}
        found: list[Trial] = []
        try:
            for trial in self.examine(examiner, journal):
                found.append(trial)
        except KeyboardInterrupt:
            asked = {*self.grid}
            known = {place(each): each for each in [*(journal.read() if journal else ()), *found] if place(each) in asked}
            raise Interrupted(self.result(model, [*known.values()], complete=False, **about) if known else None) from None
        return self.result(model, self.processes.gather(found), complete=True, **about)

    def open_journal(self, model: Any, encoding: str) -> Journal[Trial] | None:
        """That of this encoding; another model, encoding or task has another file. Another grid has not: what is there stays of use."""
        if self.journal is None:
            return None
        settings = {
            "task": {"template": TEMPLATE, **asdict(self.prompts.task), **self.prompts.filler_identity, "generate": self.generate},
            "live": inspect_model(model),
            "weights": weights_digest(model),
            "dtype": str(model.dtype),
        }
        return Journal(self.journal / f"{name_of(encoding)}-{digest(settings)}", Trial, self.processes.rank)

    def examine(self, examiner: Examiner, journal: Journal[Trial] | None) -> Iterator[Trial]:
        """A trial of each prompt of this process's share, from the journal where it is there."""
        for length, depth, index in islice(self.grid, self.processes.rank, None, self.processes.count):
            prompt = self.prompts.prompt(length, depth, index)
            before = journal.done.get((index, prompt.sha256)) if journal else None
            if before is not None:
                if self.progress is not None:
                    self.progress(before.ran)
                yield before
                continue
            trial = examiner.trial(prompt, length, depth, index, self.processes.rank)
            if journal is not None:
                journal.add(trial)
            yield trial

    def result(self, model: Any, trials: list[Trial], complete: bool, **about: Any) -> PasskeyResult:
        """What the trials of all processes come to."""
        seconds = max(sum(each.seconds for each in trials if each.rank == rank) for rank in {each.rank for each in trials})
        cells = groupby(sorted(trials, key=place), key=lambda each: (each.length, each.depth))
        fingerprint, state = inspect_model(model)
        return PasskeyResult(
            template=TEMPLATE,
            task=asdict(self.prompts.task),
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


def place(trial: Trial) -> tuple[int, float, int]:
    """Of a trial in the grid."""
    return trial.length, trial.depth, trial.index
