"""What a call of `patch` asks for: an encoding, or a mix of several by layer and by head, as requests that say it in plain values."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..encodings import options_of
from ..encodings.composing.by_head import ByHead
from ..mixes import MIXES
from ..mixes.by_layer import ByLayer
from ..registry import current_options
from ..variants import labelled, parse_layers
from .record import Patch, Request

LOCAL = ("sliding_attention", "chunked_attention")
"""Layer types that see a stretch of the text alone."""
Layers = None | str | int | slice | Sequence[int]
Asked = str | Mapping[str, Mapping[str, Any]]
"""A name of an encoding or a mix, or the encodings of a mix with their options, `layers` and `heads` among them."""


def asked_for(record: Patch, asked: Asked, layers: Layers, options: Mapping[str, Any]) -> list[Request]:
    """One request for each encoding, on disjoint layers.

    Raises:
        ValueError: a layer that the model does not have; a mix whose parts are for the same layers or heads.
    """
    if isinstance(asked, Mapping):
        if options:
            raise ValueError(f"options of a mix belong to its encodings, as {{{next(iter(asked), 'rope')!r}: {dict(options)!r}}}")
        return asked_for(record, ByLayer.name, layers, {"parts": [labelled(label) | dict(own) for label, own in asked.items()]})
    if (name := asked) not in MIXES:
        return [Request.of(name, _plain(options), select(layers, record))]
    chosen = select("all" if layers is None else layers, record)
    return _mixed(record, MIXES[name](**_known(name, options)).parts(chosen), chosen)


def select(layers: Layers, record: Patch) -> tuple[int, ...]:
    """The layer indices meant by `layers`."""
    everything = range(record.num_layers)
    if layers is None:
        return _default_layers(record)
    if isinstance(layers, str):
        layers = parse_layers(layers)
    if layers == "all":
        return tuple(record.attentions)
    if isinstance(layers, slice):
        layers = everything[layers]
    chosen = list(layers) if isinstance(layers, Iterable) else [layers]
    if not chosen:
        raise ValueError(f"layers= selects none of the {len(everything)} layers: the patch would have no effect")
    found = sorted({_layer_index(i, len(everything)) for i in chosen})
    if without := [i for i in found if i not in record.attentions]:
        raise ValueError(
            f"layers {', '.join(map(str, without))} have no attention; those with are {', '.join(map(str, record.attentions))}"
        )
    return tuple(found)


def _layer_index(i: Any, num_layers: int) -> int:
    """`i`, an integer of any library, counted from the first layer."""
    if isinstance(i, bool) or not hasattr(i, "__index__") or not -num_layers <= operator.index(i) < num_layers:
        raise ValueError(f"layer {i!r} does not exist; the model has layers 0 to {num_layers - 1}")
    return operator.index(i) % num_layers


def _default_layers(record: Patch) -> tuple[int, ...]:
    positional = [i for i, attention in record.attentions.items() if record.architecture.uses_slot(attention)] or list(record.attentions)
    types = record.architecture.layer_types(record.backbone.config)
    added = not record.architecture.rotates  # and feeds the local layers too
    full = [i for i in positional if added or types[i] not in LOCAL]
    return tuple(full or positional)


# -- mixes ----------------------------------------------------------------------------------------------------------------


def _known(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options`, if the mix `name` takes them."""
    cls = MIXES[name]
    known, options = options_of(cls), current_options(cls, options)
    if unknown := [option for option in options if option not in known]:
        raise ValueError(f"mix {name!r} has no option {unknown[0]!r}. It takes {', '.join(known)}")
    return options


def _mixed(record: Patch, parts: Sequence[Mapping[str, Any]], chosen: tuple[int, ...]) -> list[Request]:
    """The requests for `parts` of the layers `chosen`; those for the same layers are one, by head."""
    groups: dict[tuple[int, ...] | None, list[dict[str, Any]]] = {}
    for part in parts:
        own = {option: value for option, value in part.items() if option != "layers"}
        groups.setdefault(None if (layers := part.get("layers")) is None else select(layers, record), []).append(own)
    taken = [i for layers in groups for i in layers or ()]
    if twice := sorted({i for i in taken if taken.count(i) > 1}):
        raise ValueError(f"layers {', '.join(map(str, twice))} are in several parts of the mix")
    if outside := sorted(set(taken) - set(chosen)):
        raise ValueError(f"layers {', '.join(map(str, outside))} are in a part of the mix, but not in layers=")
    rest = tuple(i for i in chosen if i not in taken)
    if None in groups and not rest:
        names = ", ".join(repr(part["name"]) for part in groups[None])
        raise ValueError(f"no layers are left for {names}: the other parts of the mix have them all")
    return [_request(group, rest if layers is None else layers) for layers, group in groups.items()]


def _request(group: list[dict[str, Any]], layers: tuple[int, ...]) -> Request:
    """What encodings do in the same layers."""
    if len(group) > 1 and not any("heads" in part for part in group):
        names = " and ".join(repr(part["name"]) for part in group)
        raise ValueError(f"{names} are for the same layers: say which by layers=, or which of their heads by heads=")
    options: dict[str, Any] = {"parts": group} if len(group) > 1 else dict(group[0])
    return Request.of(ByHead.name if len(group) > 1 else options.pop("name"), _plain(options), layers)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` as a checkpoint would give them back, where it can hold them."""
    try:
        return json.loads(json.dumps(dict(options)))
    except TypeError:
        return dict(options)
