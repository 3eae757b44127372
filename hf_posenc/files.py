"""Files that are whole or not there, and errors that say of which file they tell."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """An `OSError` within the block names the file; that of a full disk does not by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise (OSError(f"{path}: {error}") if error.errno is None else OSError(error.errno, error.strerror, str(path))) from error


def default_cache_dir() -> Path:
    """`$HF_POSENC_CACHE`, else `$XDG_CACHE_HOME/hf_posenc`, else `~/.cache/hf_posenc`."""
    if cache := os.environ.get("HF_POSENC_CACHE"):
        return Path(cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hf_posenc"


def check_writable(folder: str | os.PathLike, flag: str = "--output_dir") -> None:
    """Raise OSError where an output folder, which need not be there yet, could not be written; nothing is left behind."""
    place = Path(folder).absolute()
    there = next(path for path in (place, *place.parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there) if there != place else tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {flag} {folder} ({there}: {error.strerror}): choose another folder") from None


def write_atomically(path: str | os.PathLike, text: str) -> Path:
    """Write a text file so that it is either complete or not there, also if the process dies meanwhile."""
    return replace_atomically(path, lambda file: file.write(text.encode()))


def replace_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> Path:
    """The same for a file of bytes that `write` fills.

    Raises:
        OSError: it cannot be written; the message has its name, and what was there before is there still.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        with naming(path):
            with open(partial, "xb") as file:
                write(file)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
