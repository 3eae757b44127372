"""Time, memory and versions of a run."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a number."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("transformers", "hf_posenc"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@dataclass
class Meter:
    """Seconds and peak memory of a `with` block.

    On CUDA the peak is what torch allocated on `device`, elsewhere the resident memory of the process: since the start of the block
    where the system can reset its high-water mark (Linux), of the whole process so far otherwise.
    """

    device: torch.device
    seconds: float = 0.0
    peak: int | None = None
    kind: str | None = None

    def __enter__(self) -> Meter:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            torch.cuda.synchronize(self.device)
        else:
            self.reset = reset_high_water_mark()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak, self.kind = torch.cuda.max_memory_allocated(self.device), "CUDA memory allocated"
        else:
            self.peak = high_water_mark()
            self.kind = "resident memory" if self.reset else "resident memory of the process so far"
        self.seconds = time.perf_counter() - self.start


def reset_high_water_mark() -> bool:
    """Ask Linux to start the peak of this process's resident memory anew; False where that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def high_water_mark() -> int | None:
    """Peak resident memory in bytes; None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
