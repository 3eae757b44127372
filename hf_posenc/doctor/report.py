"""What a doctor has found, as text for people and as JSON for programs.

The JSON of one examination has the keys below; within one `schema_version` keys are added, and none is renamed, removed or given another
meaning. A list or mapping that was not asked for is empty.

| key | what it holds |
|---|---|
| `schema_version` | 1 |
| `passed` | nothing is wrong, of what was examined |
| `asked` | the model as it was named; null for the shape of Llama 3 8B, or a model in memory |
| `machine` | device, versions, platform, cores, load, packages (`machine.described`) |
| `dtype`, `tolerance` | of the kernels: the dtype, and what they may be off by (`atol`, `rtol`) |
| `model` | what was found (`found.Found`), null where there is no model to look at |
| `faults` | where, what, advice, grave (`faults.Fault`); a grave one is why `passed` is false |
| `encodings` | by label: place, path, in_training, why, options, stages, learns (`outlook.Outlook`) |
| `trials` | on the tiny twin: encoding, check, outcome, why (`trials.Trial`) |
| `kernels` | every path on this device: backend, encoding, path, why, rows, what, error (of the tolerance), failure (`checks.Check`) |
| `costs` | by length, by encoding: seconds and peak bytes of one layer (`benchmarking.Cost`) |
| `not_examined` | by part of the examination: the labels that it was not made with |
| `seconds` | that it took |

That of `--all` has `schema_version`, `passed`, `machine`, `encodings` (the labels), `seconds` and `types`: by model type its `status`
(served, refused, not built), `why`, `seconds`, `reasons` (of what failed), and `checks`: by name of the check, for each label, what it
came to (passed, FAILED, refused, -).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from ..benchmarking import Cost, cells
from ..tables import print_numbers, print_texts
from ..variants import STOCK, name_of
from ..verdict import Failures
from .checks import SLACK, Check
from .faults import Fault
from .found import Found
from .outlook import Outlook, together
from .subject import PASSES
from .trials import CHECKED, LEFT_OUT, PASSED, Trial, wrong

SCHEMA_VERSION = 1


@dataclass
class Report:
    """One examination. The fields are the keys of its JSON."""

    asked: str | None
    machine: dict[str, Any]
    dtype: str = ""
    tolerance: dict[str, float] = field(default_factory=dict)
    model: Found | None = None
    faults: list[Fault] = field(default_factory=list)
    encodings: dict[str, Outlook] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    kernels: list[Check] = field(default_factory=list)
    costs: dict[int, dict[str, Cost]] = field(default_factory=dict)
    not_examined: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Nothing is wrong, of what was examined."""
        bad = [fault for fault in self.faults if fault.grave], wrong(self.trials), self.failures
        return self.model is not None and not any(bad)

    @property
    def failures(self) -> Failures:
        """What failed first on each path of each encoding."""
        found: Failures = {}
        for check in self.kernels:
            if check.failure:
                why = f"{check.what}, {check.rows}: {check.failure}"
                found.setdefault(name_of(check.encoding), {}).setdefault(check.path, why)
        return found

    def to_dict(self) -> dict[str, Any]:
        """What its JSON holds."""
        return {"schema_version": SCHEMA_VERSION, "passed": self.passed, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            self.show()
        return text.getvalue().rstrip()

    # -- as text ------------------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Print everything."""
        for part in (self.show_machine, self.show_model, self.show_encodings, self.show_trials, self.show_kernels, self.show_costs):
            part()
        self.show_result()

    def show_machine(self) -> None:
        about = dict(self.machine)
        packages = about.pop("packages")
        print("\n".join(f"{name}: {value}" for name, value in about.items()))
        print("packages:", ", ".join(f"{name} {version}" for name, version in packages.items()) or "not installed as a package")

    def show_model(self) -> None:
        if self.model is not None:
            print()
            print_texts(["what was found", ""], [[*row] for row in self.model.rows()])
        if self.faults:
            print()
            rows = [["WRONG" if fault.grave else "note", fault.where, fault.what, fault.advice] for fault in self.faults]
            print_texts(["", "where", "what is wrong", "what to do"], rows)

    def show_encodings(self) -> None:
        """Encodings that do the same in a row."""
        if self.encodings:
            print()
            rows = [[each.place, each.path or "-", each.in_training or "-", each.why, ", ".join(labels)] for each, labels in self.groups()]
            print_texts(["place", "path", "in training", "why", "encodings"], rows)

    def groups(self) -> list[tuple[Outlook, Sequence[str]]]:
        return together(self.encodings)

    def show_trials(self) -> None:
        """A column for each check, a row for encodings of which it came to the same, and why those that did not pass did not."""
        if not self.trials:
            return
        outcomes: dict[str, dict[str, str]] = {}
        reasons: dict[tuple[str, str, str], list[str]] = {}
        for trial in self.trials:
            outcomes.setdefault(trial.encoding, {})[trial.check] = trial.outcome
            if trial.outcome != PASSED:
                reasons.setdefault((trial.outcome, trial.check, trial.why), []).append(trial.encoding)
        rows: dict[tuple[str, ...], list[str]] = {}
        for label, found in outcomes.items():
            rows.setdefault(tuple(found.get(check, LEFT_OUT) for check in CHECKED), []).append(label)
        print()
        print_texts([*CHECKED, "encodings, on a tiny twin"], [[*found, ", ".join(labels)] for found, labels in rows.items()])
        for (outcome, check, why), labels in reasons.items():
            print(f"{outcome} {check}: {why}", f"({', '.join(labels)})" if outcome != LEFT_OUT else f"({len(labels)} encodings)")

    def show_kernels(self) -> None:
        """A row for each pass of each encoding, all layouts together."""
        if not self.kernels:
            return
        tolerance = "{atol:g} + {rtol:g} of the number".format(**self.tolerance)
        print(f"\n{self.dtype}, tolerance {tolerance}, {SLACK:g} times that for gradients")
        rows = []
        for (backend, label, _, what, path), group in groupby(sorted(self.kernels, key=grouped), key=grouped):
            several = list(group)
            bad = [check for check in several if check.failure]
            worst = max((check.error for check in several if check.error is not None), default=math.nan)
            result = f"{bad[0].rows}: {bad[0].failure}" if bad else "passes"
            rows.append([label, backend, what, path, f"{len(several) - len(bad)} of {len(several)}", f"{worst:.2g}", result])
        print_texts(["on this device", "attention", "pass", "path", "layouts right", "error, of the tolerance", "result"], rows)

    def show_costs(self) -> None:
        """Time and memory of one layer, as multiples of stock attention."""
        names = list(dict.fromkeys(name for column in self.costs.values() for name in column))
        header = ["", *(f"{what}, {length:,}" for length in self.costs for what in ("time", "memory"))]
        if names:
            print()
            rows = [[name, *(cell for column in self.costs.values() for cell in cells(name, column, (STOCK,)))] for name in names]
            print_numbers("attention of one layer, one row, forward: x stock", header, rows)

    def show_result(self) -> None:
        print()
        for name, paths in self.failures.items():
            print(*(f"FAILED {name}, {path}: {why}" for path, why in paths.items()), sep="\n")
        for part, labels in self.not_examined.items():
            if labels:
                print(f"not examined, {part}: {', '.join(labels)}")
        counts = sum(fault.grave for fault in self.faults), len(wrong(self.trials)), len(self.failures)
        counted = "{} faults of the model, {} checks on its twin, {} encodings on this device".format(*counts)
        print("all that was examined passes" if self.passed else f"WRONG: {counted}", f"({self.seconds:.0f} s)")


def grouped(check: Check) -> tuple[str, str, int, str, str]:
    return check.backend, check.encoding, PASSES.index(check.what), check.what, check.path
