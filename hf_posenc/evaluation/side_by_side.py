"""What the recipes share that measure one loaded model with several encodings in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from rich.console import Console

from ..files import check_writable
from ..variants import SAID_BY_THE_PLAN, name_of
from .models import ModelArguments, check_live, digest, weights_digest
from .processes import Processes
from .report import Bar
from .result import Interrupted
from .token_nll import Progress

UNFINISHED = "unfinished"
NOT_OF_THE_RESULT = (*SAID_BY_THE_PLAN, "streaming", "expect_processes", "output_dir", "overwrite")
"""Arguments that do not say what is measured, or that the settings of each encoding say better."""


class Kept(Protocol):
    """A result on disk."""

    @property
    def complete(self) -> bool:
        """False where the run was interrupted."""

    def save(self, path: Path, /) -> Path:
        """Write it."""

    @classmethod
    def load(cls, path: Path, /) -> Any:
        """Read it."""


Found = TypeVar("Found", bound=Kept)


@dataclass
class SideBySide(Generic[Found]):
    """One encoding after another on one model: what is on disk with the same settings is taken, what was interrupted goes on.

    Args:
        arguments: of the recipe, `output_dir` and `overwrite` among them.
        processes: those that share the work.
        tokenizer, model: what is measured.
        plan: encoding -> the settings that its result depends on, `settings_of` them.
    """

    kind: ClassVar[type[Any]]
    """The class of results."""

    arguments: Any
    processes: Processes
    tokenizer: Any
    model: Any
    plan: dict[str, dict[str, Any]]

    def find(self, name: str, settings: dict[str, Any], journal: Path, advance: Progress | None) -> Found:
        """Measure one encoding."""
        raise NotImplementedError

    def tokens(self, name: str, settings: dict[str, Any]) -> int | None:
        """How many tokens this process will run for it; None where that is not known."""
        raise NotImplementedError

    def report(self, results: dict[str, Found]) -> None:
        """Print and write what compares them."""
        raise NotImplementedError

    @property
    def output(self) -> Path:
        """The folder that everything goes to."""
        return Path(self.arguments.output_dir)

    def run(self) -> dict[str, Found]:
        """Measure every encoding that is not on disk, and compare them all.

        Raises:
            Interrupted: Ctrl-C; what was finished is reported and on disk.
        """
        found = {} if self.arguments.overwrite else self.on_disk()
        self.processes.wait()  # all have looked before one writes
        for name in found:
            announce(self.processes, f"{name}: measured before, taken from {self.file(name)} (--overwrite measures again)")
        try:
            self.measure([name for name in self.plan if name not in found], found)
        except Interrupted:
            announce(self.processes, "interrupted: the same command goes on from what was finished")
            raise
        finally:
            if found and self.processes.main:
                self.report({name: found[name] for name in self.plan if name in found})
        self.processes.wait()
        if self.processes.main:
            self.clear()
        return {name: found[name] for name in self.plan}

    def clear(self) -> None:
        """Delete the journals of these encodings; those of others, of a run beside it that writes to the same folder, stay."""
        folder, done = self.output / UNFINISHED, {name_of(settings["encoding"]) for settings in self.plan.values()}
        for journal in folder.glob("*.jsonl"):
            if journal.name.rpartition("-")[0] in done:
                journal.unlink(missing_ok=True)
        with suppress(OSError):  # it is not there, or not empty
            folder.rmdir()

    def file(self, name: str) -> Path:
        """Where the result of an encoding goes to."""
        return self.output / f"{name_of(name)}-{digest(self.plan[name])}.json"

    def on_disk(self) -> dict[str, Found]:
        """The results that an earlier call left."""
        return {name: result for name in self.plan if (result := self.finished(self.file(name))) is not None}

    def finished(self, file: Path) -> Found | None:
        """The result in a file; None where there is none, or it was interrupted, or another version of this package wrote it."""
        try:
            result = self.kind.load(file)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return result if result.complete else None

    def measure(self, names: Sequence[str], found: dict[str, Found]) -> None:
        """One encoding after another, with one bar; each result is saved, also one that was interrupted."""
        tokens = [self.tokens(name, self.plan[name]) for name in names]
        with Bar(None if None in tokens else sum(filter(None, tokens)), self.processes.main) as bar:
            for name in names:
                bar.name(name)
                try:
                    found[name] = self.find(name, self.plan[name], self.output / UNFINISHED, bar.advance)
                except Interrupted as stopped:
                    if stopped.result is not None:
                        found[name] = self.saved(name, stopped.result)
                    raise
                self.saved(name, found[name])

    def saved(self, name: str, result: Found) -> Found:
        """The result, which is on disk then."""
        if self.processes.main:
            result.save(self.file(name))
        return result


def started(arguments: ModelArguments, output_dir: str) -> Processes:
    """The processes of this run; ValueError where there are not as many as expected, OSError where the output could not be written."""
    check_writable(output_dir)
    processes = Processes()
    processes.expect(arguments.expect_processes)
    announce(processes, f"{processes.count} process(es)")
    return processes


def announce(processes: Processes, text: str) -> None:
    """Print a line, in one of the processes."""
    if processes.main:
        Console(highlight=False, soft_wrap=True).print(text, markup=False)


def settings_of(
    arguments: ModelArguments, model: Any, options: Mapping[str, dict[str, Any]], more: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """For each encoding what its result depends on, after each has been in the model once.

    Raises:
        ValueError: an encoding cannot be patched in, or changes nothing.
    """
    fingerprints = check_live(model, options)
    shared = {name: value for name, value in asdict(arguments).items() if name not in NOT_OF_THE_RESULT}
    shared |= {**more, "weights": weights_digest(model)}
    return {name: {**shared, "encoding": name, "options": options[name], "fingerprint": fingerprints[name]} for name in options}
