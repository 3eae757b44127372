"""Where the doctor runs: what a report has to say of a machine."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch

from .. import verdict

KERNELS = ("triton", "flash_attn", "flash_attn_3", "kernels", "xformers", "liger_kernel", "unsloth", "deepspeed", "bitsandbytes")
"""Packages that change how a model computes, beside those that this one asks for."""


def described(device: torch.device) -> dict[str, Any]:
    """The device and its versions, the system, and every package that is installed among those that matter."""
    return {
        **verdict.machine(device),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "cuda": torch.version.cuda or torch.version.hip,
        "packages": packages(),
    }


def packages() -> dict[str, str]:
    """Versions by name."""
    try:
        asked = [re.split(r"[^\w.-]", each)[0] for each in metadata.requires("hf_posenc") or ()]
    except metadata.PackageNotFoundError:  # the folder of the source, on the path
        asked = []
    versions = {name: version(name) for name in sorted({*asked, *KERNELS} - {"hf_posenc"})}
    return {name: found for name, found in versions.items() if found is not None}


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread within the block: the many small operations of a comparison would spend their time waiting for several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
