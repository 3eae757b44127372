"""Building the encodings that requests ask for, before the model is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from ..encodings import ENCODINGS, create
from ..encodings.composing.by_head import ByHead
from ..encodings.composing.embedded import OPTION as EMBEDDED
from ..encodings.contract import check_stages
from ..encodings.temperature.base import Temperature
from .backends import check_backend
from .installing import replace
from .projections import projections_of
from .record import Patch, Placement, Request, attribute_name


def apply(record: Patch, *requests: Request, native_slot: bool = True) -> None:
    """Carry out requests, beside those on other layers and in place of those on the same.

    Args:
        native_slot: use the native slot of the model where it can hold the encoding.
    """
    replace(record, planned(record, requests, native_slot))


def planned(record: Patch, requests: Sequence[Request], native_slot: bool = True) -> list[Placement]:
    """What the model will have once `requests` are carried out: those that stay on other layers, and their own.

    Args:
        native_slot: use the native slot of the model where it can hold the encoding.
    """
    layers = {i for request in requests for i in request.layers}
    after = [p for p in record.placements if not set(p.request.layers) & layers]
    for request in requests:
        after += placed(record, request, len(after), native_slot)
    after = [dataclasses.replace(p, attribute=attribute_name(i)) for i, p in enumerate(after)]
    check_backend(record, record.live_backend, after)
    return after


def placed(record: Patch, request: Request, index: int, native_slot: bool = True) -> list[Placement]:
    """The placements of `request`, the first with number `index`.

    Args:
        native_slot: use the native slot of the model where it can hold the encoding.
    """
    placements: list[Placement] = []
    options = dict(request.options)
    cls = ENCODINGS[request.name]
    counts_heads = issubclass(cls, ByHead) or "heads" in request.options or "temperature" in request.options
    for layers in record.alike(request.layers, cls.rotary, *([False] if counts_heads else [])):
        while layers:
            if placements:  # one of them acts on the embeddings
                options.pop(EMBEDDED, None)
            placements.append(_place(record, request, options, layers, index + len(placements), native_slot))
            layers = layers[len(placements[-1].layers) :]
    return placements


def _place(record: Patch, request: Request, options: dict[str, Any], layers: tuple[int, ...], index: int, native_slot: bool) -> Placement:
    """One encoding with `options` for all of `layers`, or for the first of them where each has its own."""
    architecture = record.architecture
    encoding = create(request.name, record.geometry(layers[0]), **options)
    if encoding.per_layer:
        layers = layers[:1]
    table = _table(record)
    if table is not None:
        encoding.adopt(table)
    dtype = record.embedding.dtype if record.embedding.is_floating_point() else None
    encoding = encoding.to(record.device, dtype).train(record.model.training)
    check_stages(encoding, dtype or torch.float32)
    slot_used = all(architecture.uses_slot(record.attentions[i]) for i in layers)
    native = native_slot and slot_used and architecture.can_hold(encoding)
    if not native:
        if not architecture.caches_keys and (encoding.has("state") or encoding.noted):
            raise ValueError(f"{encoding.name!r} keeps a state beside each key in the KV cache, but this family caches no keys (MLA)")
        architecture.check_encoding(record.backbone, encoding)
        architecture.seam.check(encoding)
    projections = {i: projections_of(record)[i] for i in layers} if encoding.has("infuse") else {}
    return Placement(request, layers, encoding, attribute_name(index), native, isinstance(encoding, Temperature), projections)


def _table(record: Patch) -> torch.Tensor | None:
    """The learned table that is live, so that growing it again keeps its training; else the native one."""
    for placement in record.placements:
        if placement.in_table:
            return record.architecture.native_table(record.slot)
        if placement.encoding.table_rows() is not None:
            return placement.encoding.table_rows()
    return record.architecture.native_table(record.native)
