"""Every model type of transformers, as a tiny model: types x checks."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import logging

from ..evaluation.journal import Journal
from ..evaluation.models import Plan
from ..evaluation.report import own_bar_only
from ..files import check_writable, write_atomically
from ..patching import patch_of
from ..tables import print_texts
from .examination import plan_of
from .faults import one_line
from .machine import described, one_thread
from .model_types import causal_types, cut
from .outlook import outlook
from .reading import Ill, Source, shallow, twin
from .report import SCHEMA_VERSION
from .trials import CHECKED, FAILED, LEFT_OUT, PASSED, REFUSED, Twin, wrong

OUTPUT = "runs/doctor.json"
LABELS = ("alibi", "yarn", "sinusoidal")
"""An encoding for each place, where none is named."""
SERVED, OUT, UNBUILT = "served", "refused", "not built"


@dataclass(frozen=True)
class Row:
    """What became of one model type; a line of the journal.

    Args:
        index: among the types. sha256: of all that decides it.
        status: one of the three above. why: it is refused or not built.
        checks: by name of the check, the outcome for each encoding that the type takes. reasons: of those that failed.
    """

    index: int
    sha256: str
    model_type: str
    status: str
    why: str = ""
    checks: dict[str, dict[str, str]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Row:
        return cls(**found)

    def cell(self, check: str) -> str:
        """All encodings together."""
        outcomes = self.checks.get(check, {})
        if bad := [label for label, outcome in outcomes.items() if outcome == FAILED]:
            return f"{FAILED} {', '.join(bad)}"
        return next((each for each in (PASSED, REFUSED) if each in outcomes.values()), LEFT_OUT)


def examine_types(labels: Sequence[str], device: torch.device, output: str | None) -> bool:
    """Try every causal model type, write the matrix, and print it; whether nothing failed.

    What is done lies in a journal beside the output until all is done: a run that was stopped goes on there.
    """
    start, file, plan = time.monotonic(), Path(output or OUTPUT), plan_of(labels or LABELS)
    check_writable(file.parent, "--output")
    machine = described(device)
    settings = {"labels": list(plan), **{key: machine[key] for key in ("device", "torch", "transformers", "hf_posenc")}}
    journal, rows = Journal(file.with_suffix(""), Row), []
    console = Console(stderr=True)
    for index, model_type in track([*enumerate(causal_types())], "model types", console=console, disable=not console.is_terminal):
        key = hashlib.sha256(json.dumps([model_type, settings], sort_keys=True).encode()).hexdigest()
        row = journal.done.get((index, key))
        if row is None:
            with own_bar_only(), one_thread(), quiet():
                row = examined(index, key, model_type, plan, device)
            journal.add(row)
        rows.append(row)
    passed = not any(row.reasons for row in rows)
    found = {row.model_type: {k: v for k, v in asdict(row).items() if k not in ("index", "sha256", "model_type")} for row in rows}
    report = {"schema_version": SCHEMA_VERSION, "passed": passed, "machine": machine, "encodings": list(plan)}
    report |= {"seconds": round(time.monotonic() - start, 1), "types": found}
    write_atomically(file, json.dumps(report, indent=1) + "\n")
    for each in journal.files:
        each.unlink()
    show(rows)
    print(f"\n{'all that was examined passes' if passed else 'WRONG: see FAILED'}; {file}")
    return passed


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of transformers, which every default configuration has some of."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def examined(index: int, key: str, model_type: str, plan: Plan, device: torch.device) -> Row:
    """One type."""
    start = time.monotonic()

    def row(status: str, why: str = "", **more: Any) -> Row:
        return Row(index, key, model_type, status, why, seconds=round(time.monotonic() - start, 2), **more)

    try:
        source = Source(model_type)
        source.config = cut(source.config)
        model = source.skeleton()
    except Ill as ill:
        return row(UNBUILT, ill.fault.what)
    except Exception as error:  # whatever a configuration class raises without arguments
        return row(UNBUILT, one_line(error))
    try:
        record = patch_of(model)
        small = Twin(twin(record, device))
    except Exception as error:
        return row(OUT, one_line(error))
    seen = outlook(patch_of(shallow(record)), plan, device, torch.float32)
    trials = [t for label, each in seen.items() if each.served for t in small.examine(label, each.options)]
    checks = {check: {t.encoding: t.outcome for t in trials if t.check == check} for check in CHECKED}
    return row(SERVED, checks=checks, reasons=[f"{t.check}, {t.encoding}: {t.why}" for t in wrong(trials)])


def show(rows: Sequence[Row]) -> None:
    """A row for each type, a column for each check; then the reasons."""
    print_texts(["type", "", *CHECKED], [[row.model_type, row.status, *(row.cell(check) for check in CHECKED)] for row in rows])
    for row in rows:
        for reason in [row.why] if row.why else row.reasons:
            print(f"{row.model_type}: {reason}")
    print(*(f"{sum(row.status == status for row in rows)} {status}" for status in (SERVED, OUT, UNBUILT)), sep=", ")
    sys.stdout.flush()
