"""Libraries that only a part of the package needs: each is imported where it is used, and belongs to an extra in pyproject.toml."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtra(ImportError):
    """A library of an extra is not installed."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports of libraries that the extra `name` brings.

    Raises:
        MissingExtra: one of them is not there; the message says how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        raise MissingExtra(f"{library} is not installed: pip install '{__package__}[{name}]'") from error
