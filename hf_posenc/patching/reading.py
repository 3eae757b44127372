"""What a file says of the encodings of a model: plain values, looked at before anything is built of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from ..encodings import create
from .record import Patch, Request

FIELDS = {field.name: {"name": str, "options": dict, "layers": list}[field.name] for field in dataclasses.fields(Request)}
"""Of each entry, with the kind of value that JSON has for it."""
ALWAYS_FITS = 1 << 24
"""Numbers that an encoding may hold however small the model around it is."""


def read(record: Patch, entries: Any) -> list[Request]:
    """The calls of `patch` that led to what was saved, as `written` has said them.

    Raises:
        ValueError: they are not of that form or not for this model, or would hold more numbers than all of the model does.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"positional_encoding is damaged: a list of entries was expected, got {type(entries).__name__}")
    requests = [_request(entry, record) for entry in entries]
    held, limit = sum(_size(record, request) for request in requests), sum(x.numel() for x in record.model.parameters())
    if held > max(limit, ALWAYS_FITS):
        raise ValueError(f"positional_encoding is damaged: it would hold {held:,} numbers, and all of the model holds {limit:,}")
    return requests


def _request(entry: dict[str, Any], record: Patch) -> Request:
    if unknown := sorted(entry.keys() - FIELDS.keys()):
        raise ValueError(f"positional_encoding has {unknown[0]!r}, which is unknown here: upgrade hf_posenc, a newer one has written it")
    for name, kind in FIELDS.items():
        if not isinstance(entry.get(name), kind):
            raise ValueError(f"positional_encoding is damaged: its {name!r} is {entry.get(name)!r}")
    layers = entry["layers"]
    if not layers or any(type(i) is not int or i not in record.attentions for i in layers) or len(set(layers)) < len(layers):
        raise ValueError(f"positional_encoding is damaged: its layers are {layers}, and the model has {_span(list(record.attentions))}")
    return Request.of(entry["name"], entry["options"], layers)


def _size(record: Patch, request: Request) -> int:
    """How many numbers the encodings of a request would hold, found without holding them."""
    geometry = record.geometry(request.layers[0])
    with torch.device("meta"):
        encoding = create(request.name, geometry, **request.options)
    own = sum(x.numel() for x in (*encoding.parameters(), *encoding.buffers()))
    return own * (len(request.layers) if encoding.per_layer else 1)


def _span(layers: Sequence[int]) -> str:
    return f"{layers[0]} to {layers[-1]}" if len(layers) == layers[-1] - layers[0] + 1 else ", ".join(map(str, layers))
