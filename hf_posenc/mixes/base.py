"""What a mix is: which encoding, with which options, each layer has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from ..encodings.options import count
from ..registry import Registry

MIXES: Registry[type[Mix]] = Registry("mix")
Part = dict[str, Any]
"""{"name": ...} with options of the encoding, and what the part is for: "layers" as `patch` takes them, and "heads"."""


class Mix:
    """Encodings by layer. `patch` makes a request of each part, so that a checkpoint holds the parts."""

    name: ClassVar[str]
    renamed_options: ClassVar[Mapping[str, str]] = {}
    """What options were called, by name: what they are called now."""
    needs_training: ClassVar[str] = "pretraining, or continued pretraining"

    def parts(self, layers: tuple[int, ...]) -> Sequence[Mapping[str, Any]]:
        """The parts for these `layers` of a model. One may leave out its layers, and has the rest."""
        raise NotImplementedError


class EveryNth(Mix):
    """One encoding in every n-th layer, and another in the layers between.

    Args:
        interval: n: layers n - 1, 2 n - 1 ... of those that are patched.
        base: the encoding between: a name, or {"name": ...} with its options.
    """

    def __init__(self, *, interval: int = 4, base: str | Mapping[str, Any] = "rope"):
        self.interval = count("interval", interval, 2)
        self.base = as_part(base)

    def every(self) -> Part:
        """The part of every n-th layer."""
        return {"name": "nope"}

    def between(self) -> Part:
        """The part of the others."""
        return self.base

    def parts(self, layers: tuple[int, ...]) -> Sequence[Part]:
        if not (chosen := layers[self.interval - 1 :: self.interval]):
            raise ValueError(
                f"{self.name!r} changes every layer number {self.interval}, and there are {len(layers)}: use a smaller interval="
            )
        return [self.between(), {**self.every(), "layers": list(chosen)}]


def as_part(value: Any) -> Part:
    """A name, or {"name": ...} with options, as the latter.

    Raises:
        ValueError: it is neither.
    """
    part = {"name": value} if isinstance(value, str) else value
    if not isinstance(part, Mapping) or not isinstance(part.get("name"), str):
        raise ValueError(f'a part of a mix is a name, or {{"name": ...}} with options, got {value!r}')
    return dict(part)


def register(name: str, *, formerly: Iterable[str] = ()) -> Callable[[type[Mix]], type[Mix]]:
    """Class decorator that files a mix under `name`.

    Args:
        formerly: names that it had, which go on working.

    Raises:
        ValueError: the name is taken.
    """

    def decorator(cls: type[Mix]) -> type[Mix]:
        MIXES.register(name, formerly=formerly)(cls)
        cls.name = name
        return cls

    return decorator
