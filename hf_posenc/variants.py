"""Encodings as a command line asks for them: names with their options, `yarn:factor=4,layers=3::4`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import combinations
from typing import Annotated, Any

from .command import parse_option
from .encodings.options import positive
from .encodings.rotary.scaling import LARGEST_FACTOR
from .flags import SUFFIXES, Check, at_least, read_settings
from .mixes import MIXES
from .mixes.by_layer import ByLayer

STOCK = "stock"
"""The model as it was loaded."""
Encodings = str | Sequence[str] | Mapping[str, Mapping[str, Any]]
"""What a caller gives: a name, names, or names with their options; a name may have options of its own, as `yarn:factor=4`."""
FACTOR: Check = partial(positive, at_least=1.0, at_most=LARGEST_FACTOR)


@dataclass
class EncodingArguments:
    """The positional encodings to compare."""

    encoding: list[str] = field(
        default_factory=lambda: [STOCK],
        metadata={
            "help": "names from `hf-posenc list` or `hf-posenc mixes`, with options as yarn:factor=4,layers=3::4; rope+nope:layers=3::4 "
            "is a mix by layer; 'stock' is the model as loaded"
        },
    )
    layers: str | None = field(default=None, metadata={"help": "which layers: all, a slice as 3::4, or indices as 0,3,7"})
    factor: Annotated[float | None, FACTOR] = field(
        default=None, metadata={"help": "context extension factor, for the encodings that take one"}
    )
    target_length: Annotated[int | None, at_least(1)] = field(
        default=None, metadata={"help": "context length to reach in tokens, for the encodings that take one"}
    )
    option: list[str] = field(
        default_factory=list,
        metadata={
            "help": "more options as key=value, for the encodings that take it, or encoding.key=value: window=1024 t5.num_buckets=16"
        },
    )

    def plan(self, defaults: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
        """The options of each encoding (`read_plan`)."""
        flags = {name: value for name in ("factor", "target_length", "layers") if (value := getattr(self, name)) is not None}
        return read_plan(self.encoding, self.option, flags, defaults)


SAID_BY_THE_PLAN = tuple(each.name for each in fields(EncodingArguments))
"""Flags that the options of each encoding say better."""


def name_of(label: str) -> str:
    """The registered name in `yarn:factor=4`; that of a mix in `rope+nope:layers=3::4`."""
    return label.partition(":")[0] if len(parts_of(label)) == 1 else ByLayer.name


def own_options(label: str) -> dict[str, Any]:
    """The options in `yarn:factor=4,beta_fast=16`, or in a file: `longrope:found.json,layers=3::4`.

    Raises:
        ValueError: one is not of the form key=value; a file cannot be read, or has what is no option of the encoding.
    """
    if len(parts := parts_of(label)) > 1:
        return {"parts": [labelled(part) for part in parts]}
    name, _, own = label.partition(":")
    found: dict[str, Any] = {}
    for word in re.split(r",(?=\w+=)", own) if own else ():
        if word.endswith(SUFFIXES) and not re.match(r"\w+=", word):
            found |= read_settings(word, taken(name))
        else:
            found |= [parse_option(word)]
    return found


def parts_of(label: str) -> list[str]:
    """The labels in `rope+nope:layers=3::4`."""
    return re.split(r"\+(?=[a-z]\w*(?:[:+]|$))", label)


def labelled(label: str) -> dict[str, Any]:
    """`yarn:factor=4` as {"name": "yarn", "factor": 4}."""
    return {"name": name_of(label), **own_options(label)}


def file_name(label: str) -> str:
    """A label in characters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "_", label)


def plan_of(encodings: Encodings) -> dict[str, dict[str, Any]]:
    """The options of each encoding, all in the plain values of JSON.

    Raises:
        ValueError: a name that is not registered.
    """
    labels = [encodings] if isinstance(encodings, str) else encodings
    given = encodings if isinstance(encodings, Mapping) else {}
    for label in labels:
        taken(name_of(label))
    return {label: plain({**own_options(label), **given.get(label, {})}) for label in labels}


def read_plan(
    labels: Sequence[str],
    option: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """The options of each encoding from a command line; the narrower wins.

    Args:
        labels: `yarn:factor=4` gives options to this one.
        option: `yarn.factor=4` gives one to all of that name, `factor=4` to all that take it.
        flags: the same as the latter, by name.
        defaults: of a name, before all others.

    Raises:
        ValueError: an unknown encoding or option, an encoding asked for twice, an option that nothing takes.
    """
    known = {name_of(label): taken(name_of(label)) for label in labels}
    shared: dict[str, dict[str, Any]] = {name: dict((defaults or {}).get(name, {})) for name in known}
    given = [(f"--{name} {value}", name, value) for name, value in (flags or {}).items()]
    given += [(f"--option {each!r}", *parse_option(each)) for each in option]
    for said, path, value in sorted(given, key=lambda each: "." in each[1]):  # the narrower ones last
        for name, key in targets(said, path, known):
            shared[name][key] = value
    plan = {label: {**shared[name_of(label)], **own_options(label)} for label in labels}
    check_plan(labels, plan, known)
    return plan


def check_plan(labels: Sequence[str], plan: Mapping[str, Mapping[str, Any]], known: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError where an encoding does not take one of its options, or is there twice."""
    for label, options in plan.items():
        if unknown := [key for key in options if key not in known[name_of(label)]]:
            raise ValueError(f"{name_of(label)!r} has no option {unknown[0]!r}. It takes {told(known[name_of(label)])}")
    for one, other in combinations(labels, 2):
        if name_of(one) == name_of(other) and plan[one] == plan[other]:
            raise ValueError(f"the encoding {other!r} is named twice; give the second one other options, as {name_of(other)}:key=value")


def taken(name: str) -> tuple[str, ...]:
    """The options that an encoding takes; ValueError for an unknown name."""
    from .encodings.base import COMPOSITIONS, ENCODINGS, options_of

    if name == STOCK:
        return ()
    cls: Any = MIXES[name] if name in MIXES else ENCODINGS[name]
    return (*options_of(cls), *cls.renamed_options, *([] if name in MIXES else COMPOSITIONS), "layers")


def told(options: Sequence[str]) -> str:
    """Options in words."""
    return f"the options {', '.join(options)}" if options else "no options"


def targets(said: str, path: str, known: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Which encodings an option goes to, with its name."""
    name, dot, key = path.rpartition(".")
    names = [name] if dot else [name for name, options in known.items() if key in options]
    if not names or not set(names) <= set(known):
        takes = "; ".join(f"{name}: {', '.join(options) or 'none'}" for name, options in known.items())
        raise ValueError(f"{said}: none of the encodings takes the option {key!r}; options are: {takes}")
    return [(name, key) for name in names]


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with their layers as text, or as a list."""
    layers = options.get("layers")
    if isinstance(layers, slice):
        parts = (layers.start, layers.stop, *([] if layers.step is None else [layers.step]))
        layers = ":".join("" if part is None else str(part) for part in parts)
    elif layers is not None and not isinstance(layers, (str, int)):
        layers = list(layers)
    return dict(options) if layers is None else {**options, "layers": layers}


def patch_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the layers as `patch` takes them."""
    layers = options.get("layers")
    return {**options, "layers": parse_layers(layers)} if isinstance(layers, str) else dict(options)


def parse_layers(layers: str) -> str | slice | list[int]:
    """`3::4` as a slice, `0,3,7` as a list, `all` as it is.

    Raises:
        ValueError: it is none of these.
    """
    if layers == "all":
        return layers
    try:
        if ":" in layers:
            return slice(*(int(bound) if bound else None for bound in layers.split(":")))
        return [int(index) for index in layers.split(",")]
    except (ValueError, TypeError):
        raise ValueError(f"layers {layers!r} is neither 'all', nor a slice such as 3::4, nor indices such as 0,3,7") from None
