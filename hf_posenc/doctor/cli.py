"""`hf-posenc doctor`: flags, what is printed and written, and the verdict that `patch` reads."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch

from .. import verdict
from ..attention.choice import BACKENDS
from ..command import exit_status
from ..evaluation.models import DTYPES, is_device
from ..evaluation.report import own_bar_only
from ..files import check_writable, write_atomically
from ..flags import at_least, parse
from ..patching import Patch
from ..variants import name_of
from .checks import answers
from .costs import costs
from .examination import SECONDS, Clock, look, parts, plan_of, recognised, subjects_of, weights_in
from .machine import described
from .matrix import examine_types
from .reading import Ill, Source
from .report import Report
from .subject import Subject


@dataclass
class Examined:
    """What is examined."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "hub id, local path, 'demo', or a model type as llama; the configuration alone is read; default the shape of Llama 3 8B"
        },
    )
    all: bool = field(
        default=False, metadata={"help": "every model type instead: types x checks, tiny models; goes on where it was stopped"}
    )
    device: Annotated[str, is_device] = field(default="auto", metadata={"help": "cpu, cuda, cuda:1, mps, or auto"})
    encoding: list[str] = field(
        default_factory=list,
        metadata={"help": "names, with options as yarn:factor=4, or 'all'; default one of each kind, as far as the time goes"},
    )
    seconds: Annotated[int, at_least(0)] = field(
        default=SECONDS, metadata={"help": "for encodings that are not named; 0 for as long as they take"}
    )
    dtype: str = field(default="auto", metadata={"help": "auto: as the model says, else bfloat16, float32 on a CPU", "choices": DTYPES})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "default the model's own choice, and flash attention where it is installed", "choices": BACKENDS}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "run the code that lies beside the weights"})


@dataclass
class DoctorArguments(Examined):
    """What a model is, what is wrong with it, what each encoding would do, and whether it does: what to attach to a bug report."""

    lengths: Annotated[list[int], at_least(1)] = field(
        default_factory=list, metadata={"help": "tokens to measure time and memory at, as 2048 8192 32768; default no measurement"}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file to write; with --all default runs/doctor.json"})
    keep: bool = field(default=True, metadata={"help": "keep the verdict for `patch`"})
    forget: bool = field(default=False, metadata={"help": "delete the verdict that is kept for this device, and do nothing else"})


def main(argv: list[str] | None = None) -> int:
    """Run the doctor; returns the exit status: 0 if everything passes, 1 otherwise."""
    passed: list[bool] = []
    status = exit_status(lambda: passed.append(run(*parse([DoctorArguments], "hf-posenc doctor", argv, first="model"))))
    return status or int(passed != [True])


def run(given: DoctorArguments) -> bool:
    """Examine and report; whether everything that was examined passes."""
    device = torch.device("cpu" if given.device == "auto" else given.device)
    if given.device == "auto" and torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator() or device
    if given.forget:
        print(f"the verdict on {verdict.name_of(device)} {'is deleted' if verdict.forget(device) else 'was not there'}")
        return True
    if given.output is not None:
        check_writable(Path(given.output).parent, "--output")
    if given.all:
        return examine_types(given.encoding, device, given.output)
    plan = plan_of(given.encoding)
    report = Report(asked=given.model, machine=described(device))
    with own_bar_only():
        record = read(given, report)
        clock = Clock(given.seconds or math.inf)  # what had to be fetched is there
        if record is not None:
            dtype = weights_in(record, device) if given.dtype == "auto" else getattr(torch, given.dtype)
            subjects = subjects_of(record, device, dtype, given.attn_implementation)
            for show in parts(report, record, plan, device, dtype, subjects, clock, named=bool(given.encoding)):
                show()
            measured(report, subjects[0], given.lengths)
            report.show_costs()
    report.seconds = round(clock.passed, 1)
    report.show_result()
    if given.keep and report.kernels:
        show_verdict(verdict.keep(device, {name_of(check.encoding) for check in report.kernels}, report.failures))
    if given.output is not None:
        write_atomically(given.output, json.dumps(report.to_dict(), indent=1) + "\n")
    return report.passed


def read(given: DoctorArguments, report: Report) -> Patch | None:
    """What a patch of the model that was named would stand on; None where nothing can be examined, and the report says why."""
    report.show_machine()
    record = None
    try:
        source = Source(given.model, given.trust_remote_code)
        report.faults += source.faults
        model = source.skeleton(given.attn_implementation)
        record = recognised(report, model)
        if record is not None and not look(report, record, model, source.live):
            record = None
    except Ill as ill:
        report.faults.append(ill.fault)
    report.show_model()
    return record


def measured(report: Report, subject: Subject, lengths: Sequence[int]) -> None:
    """Time and memory of what has not failed and is not served by the stock kernel, which a model has in its native slot for nothing."""
    labels = dict.fromkeys(
        check.encoding for check in report.kernels if check.path != "stock" and name_of(check.encoding) not in report.failures
    )
    for length in lengths:
        if answers(subject.device):
            report.costs[length], more = costs(subject, list(labels), length)
            report.kernels += more


def show_verdict(file: Path | None) -> None:
    print(f"the next patch on this machine avoids what is in {file}" if file else "nothing is to be avoided on this machine")
