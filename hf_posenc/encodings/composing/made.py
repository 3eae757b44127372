"""Classes that are made while the program runs, whose instances can be copied and pickled like others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

from torch import Tensor, nn

from ..base import PositionalEncoding

Bases = tuple[type[PositionalEncoding], ...]
Members = tuple[tuple[str, Any], ...]


class Composed(PositionalEncoding):
    """What is made of other encodings: no scheme that transformers knows, and nothing for a native slot."""

    made_of: ClassVar[Bases] = ()
    """The classes that it was made of, the outermost first."""
    made_with: ClassVar[Members] = ()
    """What the innermost has beside."""

    def frequencies(self) -> tuple[Tensor, float] | None:
        return None

    def rope_parameters(self) -> dict[str, Any] | None:
        return None

    def table_rows(self) -> Tensor | None:
        return None

    def __reduce__(self) -> tuple:
        return _empty, (type(self).made_of, type(self).made_with), self.__dict__


class ByParts(Composed):
    """What consists of several encodings."""

    parts: nn.ModuleList

    def encodings(self) -> list[Any]:
        """The parts, as encodings."""
        return list(self.parts)


@cache
def made(bases: Bases, members: Members = ()) -> Any:
    """The class of these `bases`, under the name of the innermost, which has these `members` beside its own."""
    *outer, last = bases
    told = {"__module__": last.__module__, "__qualname__": last.__qualname__, "__doc__": last.__doc__}
    inner = type(last.__name__, (last,), told | dict(members))
    return type(last.__name__, (*outer, inner), told | {"made_of": bases, "made_with": members})


def within(outer: Sequence[type[Composed]], encoding: PositionalEncoding, **members: Any) -> Any:
    """`encoding`, which becomes one of a class that does what those of `outer` do around its own, with these `members`."""
    cls = type(encoding)
    bases, known = (cls.made_of, cls.made_with) if issubclass(cls, Composed) and cls.made_of else ((cls,), ())
    encoding.__class__ = made((*outer, *bases), (*known, *members.items()))
    encoding.starts_as = ""
    return encoding


def named(option: str, value: Any) -> tuple[str, dict[str, Any]]:
    """The encoding that an option of others asks for, and the options of that: a name, or {"name": ...} with them."""
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise ValueError(f'{option}= is a name, or {{"name": ...}} with its options, got {value!r}')
    return given["name"], {key: each for key, each in given.items() if key != "name"}


def _empty(bases: Bases, members: Members) -> PositionalEncoding:
    cls = made(bases, members)
    return cls.__new__(cls)
