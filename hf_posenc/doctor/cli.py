"""`hf-posenc doctor`: flags, tables, a JSON file, and the verdict that `patch` reads."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import torch

from .. import verdict
from ..attention.choice import BIASABLE
from ..benchmarking import Cost, cells
from ..command import exit_status
from ..encodings import PositionalEncoding
from ..evaluation.demo_model import resolve_model
from ..evaluation.models import DTYPES, is_device
from ..files import check_writable, write_atomically
from ..flags import at_least, parse
from ..tables import print_numbers, print_texts
from ..variants import STOCK, name_of
from .checks import SLACK, TOLERANCE, Check, answers, examine
from .costs import costs
from .rows import LENGTH
from .subject import PASSES, Subject, chosen, read_config

NATIVE = LENGTH // 3
"""Tokens that the model counts as trained for in the comparisons, so that remaps are at work in them."""
ON_CPU, ON_ACCELERATOR = [512, 1024, 2048], [2048, 8192, 32768]


@dataclass
class Examined:
    """What is examined."""

    device: Annotated[str, is_device] = field(default="auto", metadata={"help": "cpu, cuda, cuda:1, mps, or auto"})
    model: str | None = field(
        default=None, metadata={"help": "hub id or local path, of which only the configuration is read; default the shape of Llama 3 8B"}
    )
    encoding: list[str] = field(
        default_factory=list, metadata={"help": "names, with options as yarn:factor=4, or 'all'; default one for each kind of path"}
    )
    dtype: str = field(default="auto", metadata={"help": "auto: as the model says, else bfloat16, float32 on a CPU", "choices": DTYPES})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "default the model's own choice; flash attention is not examined", "choices": BIASABLE}
    )


@dataclass
class DoctorArguments(Examined):
    """Every way that attention is computed on a device, against its definition; what fails is avoided by the next patch here."""

    lengths: Annotated[list[int], at_least(1)] = field(
        default_factory=list, metadata={"help": "tokens to measure time and memory at; default 2048 8192 32768, on a CPU 512 1024 2048"}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file to write"})
    keep: bool = field(default=True, metadata={"help": "keep the verdict for `patch`"})
    forget: bool = field(default=False, metadata={"help": "delete the verdict that is kept for this device, and do nothing else"})


def main(argv: list[str] | None = None) -> int:
    """Run the doctor; returns the exit status: 0 if everything passes, 1 otherwise."""
    passed: list[bool] = []
    status = exit_status(lambda: passed.append(run(*parse([DoctorArguments], "hf-posenc doctor", argv))))
    return status or int(passed != [True])


def run(given: DoctorArguments) -> bool:
    """Examine, measure, report; whether everything passes."""
    device = torch.device("cpu" if given.device == "auto" else given.device)
    if given.device == "auto" and torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator() or device
    if given.forget:
        print(f"the verdict on {verdict.name_of(device)} {'is deleted' if verdict.forget(device) else 'was not there'}")
        return True
    if given.output is not None:
        check_writable(Path(given.output).parent, "--output")
    subject = Subject.of(read_config(given.model and resolve_model(given.model)), given.dtype, device, given.attn_implementation)
    found, refused = chosen(subject, given.encoding, LENGTH, NATIVE)
    introduce(subject)
    checks = [check for label, encoding in found.items() for check in announced(subject, label, encoding)]
    show_checks(checks, refused)
    measured: dict[int, dict[str, Cost]] = {}
    for length in given.lengths or (ON_CPU if device.type == "cpu" else ON_ACCELERATOR):
        if answers(device):
            measured[length], more = costs(subject, costly(subject, found, checks), length)
            checks += more
    show_costs(measured)
    failed, examined = failures(checks), {name_of(check.encoding) for check in checks}
    for name, paths in failed.items():
        print(*(f"FAILED {name}, {path}: {why}" for path, why in paths.items()), sep="\n")
    if given.keep:
        show_verdict(verdict.keep(device, examined, failed))
    passed = not failed and examined == {name_of(label) for label in found}
    if given.output is not None:
        write_atomically(given.output, json.dumps(report(subject, given, checks, refused, measured, passed), indent=1) + "\n")
    return passed


def announced(subject: Subject, label: str, encoding: PositionalEncoding) -> Iterator[Check]:
    """The checks of an encoding, once stderr has been told of it; none where the device no longer answers."""
    print(f"examining {label}", file=sys.stderr, flush=True)
    if answers(subject.device):
        yield from examine(subject, label, encoding)


def costly(subject: Subject, found: Mapping[str, PositionalEncoding], checks: Sequence[Check]) -> list[str]:
    """What is worth timing: what has not failed and is not served by the stock kernel, which a model has in its native slot for nothing."""
    failed = failures(checks)
    return [label for label in found if name_of(label) not in failed and subject.choice(found[label], LENGTH).path != "stock"]


def failures(checks: Sequence[Check]) -> verdict.Failures:
    """What failed first on each path of each encoding."""
    found: verdict.Failures = {}
    for check in checks:
        if check.failure:
            found.setdefault(name_of(check.encoding), {}).setdefault(check.path, f"{check.what}, {check.rows}: {check.failure}")
    return found


# -- what is shown ----------------------------------------------------------------------------------------------------


def shape(subject: Subject) -> str:
    """The subject in words."""
    g, tolerance = subject.geometry, TOLERANCE[subject.dtype]
    parts = [f"{g.num_heads} heads, {g.num_kv_heads} key-value heads, width {g.head_dim}"]
    parts += [f"window {subject.window}" if subject.window else "", "softcap" if subject.softcap is not None else ""]
    parts += ["sinks" if subject.sinks else "", str(subject.dtype).removeprefix("torch.")]
    parts += [f"tolerance {tolerance['atol']:g} + {tolerance['rtol']:g} of the number, {SLACK:g} times that for gradients"]
    return ", ".join(part for part in parts if part)


def introduce(subject: Subject) -> None:
    about = verdict.machine(subject.device)
    print(about.pop("device"), *(f"{package} {version}" for package, version in about.items()), sep=", ")
    print(f"{subject.config.model_type}, {subject.backend}: {shape(subject)}", end="\n\n", flush=True)


def show_checks(checks: Sequence[Check], refused: dict[str, str]) -> None:
    """A row for each pass of each encoding, all layouts together."""
    rows = []
    for (label, _, what, path), group in groupby(sorted(checks, key=grouped), key=grouped):
        several = list(group)
        bad = [check for check in several if check.failure]
        worst = max((check.error for check in several if check.error is not None), default=math.nan)
        first = f"{bad[0].rows}: {bad[0].failure}" if bad else "passes"
        rows.append([label, what, path, f"{len(several) - len(bad)} of {len(several)}", f"{worst:.2g}", first])
    rows += [[label, "-", "-", "-", "-", f"left out: {why}"] for label, why in refused.items()]
    print_texts(["encoding", "pass", "path", "layouts right", "error, of the tolerance", "result"], rows)


def grouped(check: Check) -> tuple[str, int, str, str]:
    return check.encoding, PASSES.index(check.what), check.what, check.path


def show_verdict(file: Path | None) -> None:
    print(f"\nthe next patch on this machine avoids what is in {file}" if file else "\nnothing is to be avoided on this machine")


def show_costs(measured: dict[int, dict[str, Cost]]) -> None:
    """Time and memory of one layer, as multiples of stock attention."""
    names = list(dict.fromkeys(name for column in measured.values() for name in column))
    header = ["", *(f"{what}, {length:,}" for length in measured for what in ("time", "memory"))]
    if names:
        print()
        rows = [[name, *(cell for column in measured.values() for cell in cells(name, column, (STOCK,)))] for name in names]
        print_numbers("attention of one layer, one row, forward: x stock", header, rows)


def report(
    subject: Subject,
    given: DoctorArguments,
    checks: Sequence[Check],
    refused: dict[str, str],
    measured: dict[int, dict[str, Cost]],
    passed: bool,
) -> dict[str, Any]:
    """The same for programs."""
    return {
        "passed": passed,
        **verdict.machine(subject.device),
        "model": given.model,
        "attention": subject.backend,
        "shape": shape(subject),
        "dtype": str(subject.dtype).removeprefix("torch."),
        "tolerance": TOLERANCE[subject.dtype],
        "checks": [dataclasses.asdict(check) for check in checks],
        "left_out": refused,
        "costs": {length: {name: dataclasses.asdict(cost) for name, cost in column.items()} for length, column in measured.items()},
    }
