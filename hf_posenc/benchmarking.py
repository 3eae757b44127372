"""Time and memory of several ways to compute one thing, turn by turn in one process."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import psutil
import torch
from torch.profiler import ProfilerActivity, profile

from .encodings.base import ENCODINGS, options_of
from .evaluation.measure import Meter

Call = Callable[[], Any]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Cost:
    """What one call takes.

    Args:
        seconds: median over the repetitions.
        peak: bytes, as `peak_bytes` counts them.
    """

    seconds: float
    peak: int


@dataclass(frozen=True)
class Comparison:
    """Calls to measure side by side at several lengths.

    Args:
        title: of the table.
        lengths: in tokens, one pair of columns each.
        make: length -> the calls by name; a name may be missing at a length that it cannot reach.
        against: the names that the others are divided by.
        repeat: timed repetitions, in which all calls take turns.
    """

    title: str
    lengths: Sequence[int]
    make: Callable[[int], dict[str, Call]]
    against: tuple[str, ...] = ("stock",)
    repeat: int = 3

    def run(self, device: str) -> str:
        """Measure everything; a table in Markdown."""
        costs = {}
        for length in self.lengths:
            costs[length] = measure(self.make(length), self.repeat, device, f" at {length:,} tokens")
        return markdown(self.title, costs, self.against)


def measure(calls: dict[str, Call], repeat: int, device: str, where: str = "") -> dict[str, Cost]:
    """The cost of each call that fits in memory; of the others a line is printed, which `where` completes.

    On a CPU the first call counts its memory and warms it up. On an accelerator another one comes before, in which kernels are
    compiled. Only later ones are timed. The calls take turns within each repetition, so that a slow moment of the machine hits all of
    them.
    """

    def first(call: Call) -> int:
        if torch.device(device).type != "cpu":
            call()
        return peak_bytes(call, device)

    peaks = fitting({name: partial(first, call) for name, call in calls.items()}, where)
    rounds = [{name: seconds(calls[name], device) for name in peaks} for _ in range(repeat)]
    return {name: Cost(statistics.median(r[name] for r in rounds), peaks[name]) for name in peaks}


def fitting(makers: dict[str, Callable[[], Made]], where: str = "") -> dict[str, Made]:
    """What each returns, by name; what runs out of the memory of an accelerator is left out, and a line says so."""
    made = {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except torch.OutOfMemoryError:
            print(f"{name}{where} is left out: it does not fit in memory", flush=True)
    return made


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated."""
    module = torch.get_device_module(device)
    return module.mem_get_info(device)[0] if hasattr(module, "mem_get_info") else psutil.virtual_memory().available


def reaching(name: str, length: int, native: int) -> dict[str, Any]:
    """Options with which an encoding reaches `length` tokens in a model trained for `native`."""
    reach = {"factor": float(max(2, math.ceil(length / native))), "max_positions": length}
    return {option: value for option, value in reach.items() if option in options_of(ENCODINGS[name])}


def seconds(call: Call, device: str) -> float:
    """Wall-clock time of one call, the device's work included."""
    with Meter(torch.device(device)) as meter:
        call()
    return meter.seconds


def peak_bytes(call: Call, device: str) -> int:
    """The most that torch held at once of what it allocated during `call`, in bytes.

    On CPU each allocation is read from the profiler, those inside kernels included. That is exact, and does not depend on what the C
    library gives back to the system; the buffers that BLAS keeps for itself are not in it. On CUDA it is the peak of the caching
    allocator above its level before the call.
    """
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        with Meter(torch.device(device)) as meter:
            call()
        return (meter.peak or 0) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells stderr of every start
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        call()
    held: dict[int, int] = {}
    now = peak = 0
    for allocation in allocations(trace):
        # Only what this call allocated: whether an earlier call left something to free here must not change the number.
        now -= held.pop(allocation.ptr, 0)
        if allocation.alloc_size > 0:
            held[allocation.ptr] = allocation.alloc_size
            now += allocation.alloc_size
        peak = max(peak, now)
    return peak


def allocations(trace: Any) -> list[Any]:
    """What was allocated (`alloc_size` > 0) and freed (< 0) in a profile, in order."""
    events, found = list(trace.profiler.kineto_results.experimental_event_tree()), []
    while events:
        event = events.pop()
        events += event.children
        if event.name == "[memory]":
            found.append(event)
    return [event.extra_fields for event in sorted(found, key=attrgetter("start_time_ns"))]


def markdown(title: str, costs: dict[int, dict[str, Cost]], against: tuple[str, ...]) -> str:
    """A table of ratios, the medians beside them: costs[length][name], a dash where there is none."""
    names = list(dict.fromkeys(name for column in costs.values() for name in column))
    rows = [["", *(f"{what}, {length:,}" for length in costs for what in ("time", "memory"))]]
    rows += [[name, *(text for column in costs.values() for text in cells(name, column, against))] for name in names]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows]
    return "\n".join([f"### {title}: x {' / x '.join(against)}", "", *lines, ""])


def cells(name: str, column: dict[str, Cost], against: tuple[str, ...]) -> tuple[str, str]:
    """Time and memory of one call at one length, as multiples of `against`."""
    if name not in column:
        return "-", "-"
    cost, others = column[name], [column.get(other, Cost(0, 0)) for other in against]
    time = " / ".join(ratio(cost.seconds, other.seconds) for other in others)
    memory = " / ".join(ratio(cost.peak, other.peak) for other in others)
    return f"{time} ({cost.seconds * 1e3:,.1f} ms)", f"{memory} ({cost.peak / 2**20:,.1f} MB)"


def ratio(value: float, other: float) -> str:
    return f"{value / other:.2f}" if other else "-"
