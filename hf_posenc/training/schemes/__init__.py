"""One scheme, one file. A module placed here is found, listed and offered by the recipe without being named anywhere else."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import Any

from ...registry import import_submodules, suggestion
from .base import SCHEMES, Document, PositionScheme, scheme

import_submodules(sys.modules[__name__])
OUTSIDE = ("self", "seed", "collator")
"""Arguments that every scheme has."""


@dataclasses.dataclass(frozen=True)
class SchemeDescription:
    """What a position scheme is: its class, documentation, and options with defaults."""

    name: str
    title: str
    documentation: str
    options: dict[str, Any]
    whole: bool

    @property
    def summary(self) -> str:
        """The first line of the documentation."""
        return self.documentation.split("\n")[0]

    def __str__(self) -> str:
        options = ", ".join(name if value is inspect.Parameter.empty else f"{name}={value!r}" for name, value in self.options.items())
        facts = [f"options: {options or 'none'}", f"positions: {'whole numbers' if self.whole else 'between whole numbers'}"]
        return "\n".join([f"{self.name} ({self.title})", "", self.documentation, "", *facts])


def list_schemes() -> list[str]:
    """Names of all position schemes, sorted."""
    return list(SCHEMES)


def describe_scheme(name: str) -> SchemeDescription:
    """What the position scheme `name` is and takes; ValueError where there is none."""
    cls = SCHEMES[name]
    parameters = inspect.signature(cls.__init__).parameters
    options = {option: parameter.default for option, parameter in parameters.items() if option not in OUTSIDE}
    return SchemeDescription(name, cls.__name__, inspect.getdoc(cls) or "", options, cls.whole)


def create_scheme(name: str, seed: int = 0, **options: Any) -> PositionScheme:
    """A position scheme by its name.

    Raises:
        ValueError: unknown name, an option that is unknown, missing, or has a value that cannot be.
    """
    known = describe_scheme(name).options
    for option in options:
        if option not in known:
            takes = f"It takes {', '.join(known)}." if known else "It takes no options."
            raise ValueError(f"position scheme {name!r} has no option {option!r}.{suggestion(option, list(known))} {takes}")
    if missing := [option for option, default in known.items() if default is inspect.Parameter.empty and option not in options]:
        raise ValueError(f"position scheme {name!r} needs {', '.join(missing)}")
    made = SCHEMES[name](seed=seed, **options)
    made.options = options
    return made


__all__ = ["SCHEMES", "Document", "PositionScheme", "SchemeDescription", "create_scheme", "describe_scheme", "list_schemes", "scheme"]
