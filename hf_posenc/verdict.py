"""What `hf-posenc doctor` has seen fail on this machine, kept in the cache folder: `patch` reads it and avoids those paths."""

from __future__ import annotations

import json
import platform
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

from . import __version__
from .files import default_cache_dir, write_atomically

Device = torch.device | str | int
Failures = dict[str, dict[str, str]]
"""Encoding -> path -> what went wrong, in a line."""
UNAVOIDABLE = frozenset({"blocks", "dense"})
"""The path that the others are avoided by, and that of eager models, which have no other."""


def machine(device: Device) -> dict[str, str]:
    """What a verdict holds for: the device by name, and the versions that decide what runs on it."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "hf_posenc": __version__}
    return {"device": name_of(torch.device(device)), **versions}


def name_of(device: torch.device) -> str:
    """What a device calls itself; of a CPU, what decides which kernels it runs."""
    if device.type == "cpu":
        return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    module: Any = getattr(torch, device.type, None)  # some backends have none, or bring it along later
    return module.get_device_name(device) if hasattr(module, "get_device_name") else device.type


def file(device: Device) -> Path:
    """Where the verdict on `device` is kept."""
    return default_cache_dir() / "doctor" / f"{re.sub(r'[^A-Za-z0-9_.+-]+', '_', '-'.join(machine(device).values()))}.json"


def failures(device: Device) -> Failures:
    """What has failed on `device`; nothing without a verdict, or with one that cannot be read."""
    if torch.device(device).type == "meta":
        return {}
    try:
        found = json.loads(file(device).read_text(encoding="utf-8"))["failed"]
        return {str(name): {str(path): str(why) for path, why in paths.items()} for name, paths in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def avoided(encoding: str, device: Device) -> frozenset[str]:
    """The paths that `encoding`, by its name, does not take on `device`."""
    return frozenset(failures(device).get(encoding, {})) - UNAVOIDABLE


def warn(encoding: str, device: Device) -> None:
    """Say in a warning which paths `encoding` does not take on `device`, and why, if there are any."""
    if paths := avoided(encoding, device):
        why = "; ".join(f"{path}: {failures(device)[encoding][path]}" for path in sorted(paths))
        warnings.warn(
            f"{encoding!r} goes by query block, which is slower, where it would take what `hf-posenc doctor` has seen fail on "
            f"{machine(device)['device']} ({why}). The doctor looks again, or drops its verdict with --forget",
            stacklevel=4,  # whoever calls `patch`
        )


def keep(device: Device, examined: Iterable[str], failed: Failures) -> Path | None:
    """Put what has `failed` in the place of what was known of the `examined` encodings.

    Returns:
        the file; None where nothing is known to fail, and there is none.
    """
    before, looked_at = failures(device), set(examined)
    left = {name: paths for name, paths in before.items() if name not in looked_at} | failed
    if not left:
        forget(device)
        return None
    return write_atomically(file(device), json.dumps({**machine(device), "failed": left}, indent=1) + "\n")


def forget(device: Device) -> bool:
    """Delete the verdict on `device`; whether there was one."""
    there = file(device).is_file()
    file(device).unlink(missing_ok=True)
    return there
