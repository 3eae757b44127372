"""Name -> object tables that fill themselves from the modules of a package."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Generic, TypeVar

T = TypeVar("T")


def suggestion(word: str, known: list[str]) -> str:
    """Return ' Did you mean ...?' for a misspelt word, or an empty string."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


class Registry(Generic[T]):
    """A table of named objects that knows what to say about a name it does not hold."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        """Decorator that files an object under `names`. A class takes the place of what the same lines defined before.

        Raises:
            ValueError: a name is taken.
        """

        def decorator(entry: T) -> T:
            for name in names:
                if name in self._entries and not _same_place(self._entries[name], entry):
                    raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries.update(dict.fromkeys(names, entry))
            return entry

        return decorator

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise ValueError(f"unknown {self.kind} {name!r}.{suggestion(str(name), list(self))} Known: {', '.join(self)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self):
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)


def _same_place(one: object, other: object) -> bool:
    """Whether both are classes of one name in one module."""
    if not isinstance(one, type) or not isinstance(other, type):
        return False
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def import_submodules(package: ModuleType) -> None:
    """Import every module below `package`, so that each files itself in its registry."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
