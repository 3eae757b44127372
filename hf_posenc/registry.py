"""Name -> object tables that fill themselves from the modules of a package."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def suggestion(word: str, known: list[str]) -> str:
    """Return ' Did you mean ...?' for a misspelt word, or an empty string."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def renamed(kind: str, old: str, new: str) -> str:
    """The new name, after a warning that says it."""
    warnings.warn(f"{kind} {old!r} is called {new!r} now", FutureWarning, stacklevel=3)
    return new


def current_options(cls: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` under the names that they have now; `renamed_options` of the class says what they were called.

    Raises:
        ValueError: one is given under both names.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        name = renamed(f"option of {cls.name!r},", name, new) if (new := cls.renamed_options.get(name)) else name
        if name in found:
            raise ValueError(f"{cls.name!r} is given the option {name!r} twice, once under the name that it had")
        found[name] = value
    return found


class Registry(Generic[T]):
    """A table of named objects that knows what to say about a name it does not hold. It goes on knowing the names that they had."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._former: dict[str, str] = {}

    def register(self, *names: str, formerly: Iterable[str] = ()) -> Callable[[T], T]:
        """Decorator that files an object under `names`. A class takes the place of what the same lines defined before.

        Args:
            formerly: what the first of `names` was; not listed, and whoever asks by one is told the new one.

        Raises:
            ValueError: a name is taken.
        """
        former = dict.fromkeys(formerly, names[0])

        def decorator(entry: T) -> T:
            for name in (*names, *former):
                if name in self and not _same_place(self._entries[self._former.get(name, name)], entry):
                    raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries.update(dict.fromkeys(names, entry))
            self._former.update(former)
            return entry

        return decorator

    def current(self, name: str) -> str:
        """What an object is called now.

        Raises:
            ValueError: there is none of that name, and never was.
        """
        if name in self._former:
            return renamed(self.kind, name, self._former[name])
        if name not in self._entries:
            raise ValueError(f"unknown {self.kind} {name!r}.{suggestion(str(name), list(self))} Known: {', '.join(self)}")
        return name

    def __getitem__(self, name: str) -> T:
        return self._entries[self.current(name)]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._former

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
