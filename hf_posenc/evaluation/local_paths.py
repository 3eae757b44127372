"""Telling a path on this machine from a name on the hub, before anything asks the hub."""

from __future__ import annotations

from pathlib import Path

FILES = (".json", ".jsonl", ".csv", ".parquet", ".txt", ".gguf", ".safetensors")
"""How names of files end; no name of a model or dataset on the hub does, that anyone would ask for."""


def looks_local(name: str) -> bool:
    """Whether a name can only be meant as a path: hub ids are NAME or OWNER/NAME, and OWNER is no folder here."""
    path = Path(name)
    begins = name.startswith((".", "~")) or path.is_absolute()
    return begins or name.count("/") > 1 or name.lower().endswith(FILES) or ("/" in name and path.parent.is_dir())


def existing(name: str, what: str) -> str:
    """A hub id as it is, or a path with its `~` written out.

    Args:
        name: what the user gave. what: it is for: "model", "dataset".

    Raises:
        FileNotFoundError: it can only be a path, and nothing is there; the hub would be asked for it for most of a minute.
    """
    path = Path(name).expanduser()
    if path.exists():
        return str(path) if name.startswith("~") else name
    if looks_local(name):
        raise FileNotFoundError(f"there is no {what} at {name}: give the path of a {what} that exists, or a hub id (OWNER/NAME)")
    return name
