"""One model, examined part by part: what it is, what is wrong with it, what encodings would do, on its twin, and in its kernels."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import transformers
from torch import nn

from ..attention.choice import FLASH
from ..encodings import ENCODINGS, PositionalEncoding, options_of
from ..evaluation.models import Plan
from ..patching import Patch, patch_of
from ..patching.backends import cannot_carry
from ..patching.verbs import record_of
from ..variants import name_of, read_plan
from .checks import TOLERANCE, answers, examine
from .faults import Fault, of_model, one_line
from .found import found_in
from .machine import described, one_thread
from .outlook import outlook, representatives
from .reading import shallow, twin
from .report import Report
from .rows import LENGTH, TRAINED
from .subject import IN_ATTENTION, Subject
from .trials import SHORT, Twin

ALL = "all"
SECONDS = 40
"""For what the doctor chooses itself."""
TWIN, KERNELS = "on the twin", "on this device"
"""Parts of an examination that encodings are chosen for."""
SHARE = {TWIN: 0.6, KERNELS: 1.0}
"""Of the time that is over when a part has to be done."""


@dataclass
class Clock:
    """The time that an examination may take, from the start."""

    seconds: float
    start: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> float:
        return time.monotonic() - self.start

    def within(self, part: str, labels: Sequence[str]) -> Iterator[str]:
        """`labels` one after the other until the time of a part is over; the first in any case."""
        for at, label in enumerate(labels):
            if at and self.passed > SHARE[part] * self.seconds:
                return
            yield label


def diagnose(model: nn.Module, encodings: Sequence[str] = (), *, device: str | None = None, seconds: float = SECONDS) -> Report:
    """What is wrong with a model in memory, and what encodings would do in it: `print` it, or see its fields and `to_dict()`.

    The model stays as it is. Checks are made on a small copy of its classes and configuration, with random weights.

    Args:
        encodings: names, with options as "yarn:factor=4", or "all"; by default one of each kind, as far as the time goes.
        device: for the checks; default that of the model.
        seconds: for those that are not named; 0 for as long as they take.

    Raises:
        ValueError: an encoding that there is not.
    """
    clock, plan = Clock(seconds or math.inf), plan_of(encodings)
    place = torch.device(device) if device is not None else next((p.device for p in model.parameters()), torch.device("cpu"))
    report = Report(asked=None, machine=described(place))
    if (record := recognised(report, model)) is not None:
        report.faults += of_model(record)
        if look(report, record, model):
            dtype = weights_in(record, place)
            for _ in parts(report, record, plan, place, dtype, subjects_of(record, place, dtype), clock, named=bool(encodings)):
                pass  # the caller prints the whole of it
    report.seconds = round(clock.passed, 1)
    return report


def parts(
    report: Report,
    record: Patch,
    plan: Plan,
    device: torch.device,
    dtype: torch.dtype,
    subjects: Sequence[Subject],
    clock: Clock,
    named: bool,
) -> Iterator[Callable[[], None]]:
    """What is examined of a model that can be patched, part by part: what is yielded prints the part.

    Args:
        named: a user has named the encodings.
    """
    with one_thread():
        of_encodings(report, record, plan, device, dtype, named)
    yield report.show_encodings
    able = [label for label, seen in report.encodings.items() if seen.served]
    first = able if named else representatives(report.encodings)
    with one_thread():
        on_twin(report, record, [*first, *(label for label in able if label not in first)], device, clock)
    yield report.show_trials
    with one_thread():
        in_kernels(report, subjects, record, able, first, clock)
    yield report.show_kernels


def plan_of(labels: Sequence[str]) -> Plan:
    """The encodings that are meant, with their options; all of them without a name."""
    return read_plan(list(ENCODINGS) if list(labels) in ([], [ALL]) else labels)


def weights_in(record: Patch, device: torch.device) -> torch.dtype:
    """The dtype that a model is loaded in there."""
    usual = torch.float32 if device.type == "cpu" else torch.bfloat16
    said = record.backbone.config.dtype or usual
    return said if said in TOLERANCE else usual


# -- the model --------------------------------------------------------------------------------------------------------


def recognised(report: Report, model: nn.Module) -> Patch | None:
    """What a patch would stand on; None, and a fault, where there is nothing that could be patched."""
    try:
        return record_of(model)
    except ValueError as error:
        report.faults.append(Fault("model", one_line(error), advice_for(model)))
        return None


def advice_for(model: nn.Module) -> str:
    """What to do with a model that is not recognised."""
    if not isinstance(model, transformers.PreTrainedModel):
        return "hand over the transformers model within: .module of DistributedDataParallel, ._orig_mod of torch.compile"
    if type(model).__module__.startswith("transformers."):
        return "choose a model of another type: `hf-posenc models` lists those that can be patched"
    return (
        "in its code, let the backbone hold one rotary module with inv_freq (or one table), hand (cos, sin) to the layers, and let the "
        "attention call ALL_ATTENTION_FUNCTIONS; or describe the family: hf_posenc.architectures.register(model_type)"
    )


def look(report: Report, record: Patch, model: nn.Module, live: Sequence[str] = ()) -> bool:
    """Write down what was found; whether patches can be made of it."""
    try:
        patch_of(model)
        report.model = found_in(record, model, live)
    except Exception as error:  # a module in the slot that is not the family's has nothing that could be read
        if not any(fault.grave for fault in report.faults):
            report.faults.append(Fault("model", one_line(error), "mend that, or load the model anew"))
    return report.model is not None


# -- encodings --------------------------------------------------------------------------------------------------------


def of_encodings(report: Report, record: Patch, plan: Plan, device: torch.device, dtype: torch.dtype, named: bool) -> None:
    """What each would do; a named one that is refused is a fault."""
    report.encodings = outlook(patch_of(shallow(record)), plan, device, dtype)
    for label, seen in report.encodings.items():
        if named and not seen.served and len(plan) < len(ENCODINGS):
            report.faults.append(Fault("encoding", f"{label} is refused: {seen.why}", "see `hf-posenc describe`, or choose another one"))


def left_out(report: Report, part: str, examined: Sequence[str], able: Sequence[str]) -> None:
    """Write down which encodings a part of the examination was not made with, of those that it could have been made with."""
    report.not_examined[part] = [label for label in able if label not in examined]


def announced(part: str, label: str) -> None:
    print(f"examining {label} {part}", file=sys.stderr, flush=True)


def on_twin(report: Report, record: Patch, labels: Sequence[str], device: torch.device, clock: Clock) -> None:
    """The checks of each of `labels` on a tiny copy of the model, in this order."""
    try:
        small = Twin(twin(record, device))
    except Exception as error:  # whatever a family or a driver raises
        report.faults.append(Fault("twin", one_line(error), "nothing was tried; attach this report to an issue"))
        return
    for label in clock.within(TWIN, labels):
        announced(TWIN, label)
        short = {option: value for option, value in SHORT.items() if option in known_options(label)}
        report.trials += small.examine(label, short | report.encodings[label].options)
        if not answers(device):
            break
    left_out(report, TWIN, [trial.encoding for trial in report.trials], labels)


def known_options(label: str) -> Sequence[str]:
    return list(options_of(ENCODINGS[name_of(label)])) if name_of(label) in ENCODINGS else []


# -- kernels ----------------------------------------------------------------------------------------------------------


def subjects_of(record: Patch, device: torch.device, dtype: torch.dtype, backend: str | None = None) -> list[Subject]:
    """The attention of the model as it is loaded or asked for, and through every flash attention that is there."""
    first = Subject.of(record, dtype, device, backend)
    if backend is not None:
        return [first]
    return [first, *(Subject.of(record, dtype, device, each) for each in flash_here(device, dtype) if each != first.backend)]


def flash_here(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The kinds of flash attention that are installed for a device and have kernels for a dtype."""
    if device.type == "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return []
    return [name for name in FLASH if getattr(transformers.utils, f"is_flash_attn_{name[-1]}_available", lambda: False)()]


def in_kernels(
    report: Report, subjects: Sequence[Subject], record: Patch, able: Sequence[str], labels: Sequence[str], clock: Clock
) -> None:
    """Every path of each of `labels`, which are among those that the model is `able` to have, against its definition."""
    first = subjects[0]
    report.dtype, report.tolerance = str(first.dtype).removeprefix("torch."), TOLERANCE[first.dtype]
    able = [label for label in able if set(report.encodings[label].stages) & set(IN_ATTENTION) and name_of(label) in ENCODINGS]
    for label in clock.within(KERNELS, [label for label in labels if label in able]):
        announced(KERNELS, label)
        for subject in subjects:
            if not answers(subject.device):
                return
            if (encoding := made(subject, record, label)) is not None:
                report.kernels += examine(subject, label, encoding)
    left_out(report, KERNELS, [check.encoding for check in report.kernels], able)


def made(subject: Subject, record: Patch, label: str) -> PositionalEncoding | None:
    """The encoding for the rows of a comparison; None where this attention does not carry it, or such a short text."""
    try:
        encoding = subject.encoding(label, LENGTH, TRAINED)
    except ValueError:
        return None
    return None if cannot_carry(record, subject.backend, encoding) else encoding
