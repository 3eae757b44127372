"""Saying what encodings there are, and for which models."""

from __future__ import annotations

import dataclasses
import inspect as python_inspect
import re
from typing import Annotated, Any

from .registry import suggestion

COSTS = {
    "stock": "leaves the kernel as it is",
    "table": "a table of distances",
    "regions": "by region, merged",
    "blocks": "by query block",
}
"""What the attention of a layer costs, by the name of the path that it takes on a CPU (`attention.choice`), cheapest first."""


def list_encodings(
    *,
    class_: Annotated[str | None, "kind of encoding: bias, contextual, input, remap, rotary ..."] = None,
    needs_training: Annotated[bool | None, "does a pretrained model need training after the patch?"] = None,
    cost: Annotated[str | None, f"what attention costs: {', '.join(f'{name} ({words})' for name, words in COSTS.items())}"] = None,
    relative: Annotated[bool | None, "does the score depend on the distance alone?"] = None,
    any_length: Annotated[bool | None, "is it defined at any position?"] = None,
    caches: Annotated[str | None, "key in the KV cache: transformed, raw"] = None,
) -> list[str]:
    """Names of the registered encodings, sorted: all of them, or those that are as asked (`describe` says what each is).

    Raises:
        ValueError: no encoding has such a value.
    """
    wanted = {name: value for name, value in locals().items() if value is not None}
    from .encodings import ENCODINGS

    found = {name: describe(name) for name in ENCODINGS} if wanted else {}
    for name, value in wanted.items():
        check_filter(name, value, sorted({getattr(each, name) for each in found.values()} if isinstance(value, str) else ()))
    return [name for name in ENCODINGS if all(_is(getattr(found[name], asked), value) for asked, value in wanted.items())]


def check_filter(name: str, value: Any, known: list[str]) -> None:
    """Raise ValueError for a value by which the catalogue cannot be filtered."""
    if isinstance(value, str) and value not in known:
        raise ValueError(f"no encoding has {name.strip('_')} {value!r}.{suggestion(value, known)} There are: {', '.join(known)}")
    if not isinstance(value, str | bool):
        raise ValueError(f"{name} is one of the values that encodings have, or True or False, got {value!r}")


def _is(found: Any, wanted: str | bool) -> bool:
    """Whether a property is as asked; what an encoding needs is told in words, and nothing if it needs nothing."""
    return bool(found) == wanted if isinstance(wanted, bool) else found == wanted


def list_mixes() -> list[str]:
    """Names of the mixes of encodings by layer, sorted."""
    from .mixes import MIXES

    return list(MIXES)


def list_model_types() -> list[str]:
    """Model types of transformers that can be patched, sorted: what `config.model_type` says, or that of the decoder of text within it."""
    from .architectures import ARCHITECTURES

    return list(ARCHITECTURES)


@dataclasses.dataclass(frozen=True)
class Description:
    """What an encoding is: its class, documentation, options with defaults, stages and static properties.

    Attributes:
        class_: folder of the catalogue, "own" for one that was registered from elsewhere.
        cost: one of `COSTS`.
        chosen: options that it was asked about with.
    """

    name: str
    title: str
    documentation: str
    options: dict[str, Any]
    class_: str
    stages: tuple[str, ...]
    cost: str
    relative: bool
    caches: str
    any_length: bool
    needs_training: str
    chosen: dict[str, Any]

    @property
    def summary(self) -> str:
        """The first line of the documentation."""
        return self.documentation.split("\n")[0]

    @property
    def source(self) -> str:
        """Who published it and where, as the first paragraph says."""
        found = re.search(r"\((.*)\)", " ".join(self.documentation.split("\n\n")[0].split()))
        return found[1] if found else ""

    @property
    def starts_as(self) -> str:
        """The encoding that gives the same logits right after the patch, with the options that were chosen; empty where there is none."""
        import torch

        from .encodings import ENCODINGS, Geometry, create

        if self.name not in ENCODINGS:
            return ""
        with torch.random.fork_rng(devices=[]):
            try:
                return create(self.name, Geometry(64, 4, max_positions=64), **self.chosen).starts_as
            except ValueError:  # it needs options, or another model
                return ENCODINGS[self.name].starts_as

    @property
    def differs(self) -> str:
        """In what it differs from the paper or from the authors' code."""
        found = re.findall(r"Differs from\s(?:[^\n]|\n(?!\n))*", self.documentation)
        return " ".join(" ".join(found).split())

    def __str__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in {**self.options, **self.chosen}.items()) or "none"
        facts = [
            f"options: {options}",
            f"class: {self.class_}",
            f"acts on: {', '.join(self.stages) or 'nothing'}",
            f"cost: {self.cost}, {COSTS[self.cost]}",
            f"score depends only on distance: {'yes' if self.relative else 'no'}",
            f"cached key: {self.caches}",
            f"defined at any position: {'yes' if self.any_length else 'no'}",
            f"needs training: {self.needs_training or 'no'}",
            f"right after the patch, the same logits as with: {self.starts_as or 'none'}",
        ]
        return "\n".join([f"{self.name} ({self.title})", "", self.documentation, "", *facts])


def describe(name: str, **options: Any) -> Description:
    """What the encoding or the mix `name` is and takes; with `options`, what an encoding starts as with these.

    Raises:
        ValueError: no such encoding.
    """
    from .encodings import ENCODINGS, options_of
    from .encodings.naming import STAGES
    from .mixes import MIXES

    if name in MIXES:
        return describe_mix(name)
    cls = ENCODINGS[name]
    return Description(
        name=cls.name,
        title=cls.__name__,
        documentation=python_inspect.getdoc(cls) or "",
        options=options_of(cls),
        class_=class_of(cls),
        stages=tuple(stage for stage in STAGES if cls.has(stage)),
        cost=cost_of(cls),
        relative=cls.relative,
        caches=cls.caches,
        any_length=bool(cls.any_length),
        needs_training=cls.needs_training,
        chosen=options,
    )


def describe_mix(name: str) -> Description:
    """What a mix is and takes: of what its encodings are, the costliest, and what holds for all."""
    from .encodings import options_of
    from .encodings.naming import STAGES
    from .mixes import MIXES

    cls = MIXES[name]
    parts = [describe(part["name"]) for part in cls().parts(tuple(range(8)))]
    return Description(
        name=cls.name,
        title=cls.__name__,
        documentation=python_inspect.getdoc(cls) or "",
        options=options_of(cls),
        class_="mix",
        stages=tuple(stage for stage in STAGES if any(stage in part.stages for part in parts)),
        cost=max((part.cost for part in parts), key=list(COSTS).index),
        relative=all(part.relative for part in parts),
        caches=", ".join(dict.fromkeys(part.caches for part in parts)),
        any_length=all(part.any_length for part in parts),
        needs_training=cls.needs_training,
        chosen={},
    )


def class_of(cls: Any) -> str:
    """The folder below `encodings` that the class is in."""
    home, _, place = cls.__module__.partition(".encodings.")
    return place.split(".")[0] if home == __package__ and place else "own"


def cost_of(cls: Any) -> str:
    """How the attention function serves the stages of an encoding on a CPU, without softcap, sinks or dropout."""
    from .encodings.naming import BY_BLOCK

    if cls.has(*BY_BLOCK) or (cls.has("bias") and not cls.relative):
        return "blocks"
    if cls.has("regions"):
        return "blocks" if cls.has("bias") else "regions"
    return "table" if cls.has("bias") else "stock"
