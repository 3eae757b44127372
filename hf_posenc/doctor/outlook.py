"""What each encoding would do in a model: its place and its path, or why it is refused; and which of them stand for all."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..benchmarking import reaching
from ..encodings import ENCODINGS, Geometry
from ..encodings.naming import STAGES
from ..evaluation.models import Plan
from ..inspection import path_of, place_of
from ..patching import Patch
from ..patching.placing import planned
from ..patching.verbs import plan
from ..variants import name_of, patch_options
from .faults import one_line

REACH = 2
"""How far encodings that are stretched are to reach, as a multiple of the native context."""
LONGEST = 4096
"""Rows of the tables that are made only to be looked at."""
WIDEST = 512
"""Their columns."""
REFUSED = "refused"
"""In the place of a place."""


@dataclass(frozen=True)
class Outlook:
    """What one encoding would do.

    Args:
        place: where it acts, as `inspect` says it of a patched model.
        path: of its attention in a forward pass. in_training: the same where gradients are recorded.
        why: that path, or that it is refused.
        options: with which it was asked for.
        stages: of the encoding. learns: it has parameters.
    """

    place: str
    path: str
    in_training: str
    why: str
    options: dict[str, Any] = field(default_factory=dict)
    stages: tuple[str, ...] = ()
    learns: bool = False

    @property
    def served(self) -> bool:
        """It is not refused."""
        return self.place != REFUSED

    @property
    def kind(self) -> Hashable:
        """What tells encodings apart that a model computes in different ways."""
        return self.place, self.path, self.in_training, self.learns, self.stages


class Narrow(Patch):
    """A model whose residual stream counts as about `WIDEST` wide, if it is wider: what is as wide is made only to be looked at."""

    def geometry(self, layer: int) -> Geometry:
        geometry = super().geometry(layer)
        is_wide = geometry.hidden_size > WIDEST and self.architecture.native_table(self.native) is None
        heads = 2 * geometry.num_heads
        return dataclasses.replace(geometry, hidden_size=max(WIDEST // heads, 1) * heads) if is_wide else geometry


def outlook(record: Patch, asked: Plan, device: torch.device, dtype: torch.dtype) -> dict[str, Outlook]:
    """What the encodings of a plan would do in the model of `record` on `device`; it stays as it is, and may be without numbers."""
    narrow, seen = Narrow(record.model, record.architecture, record.backbone), {}
    for label, options in asked.items():
        seen[label] = _of(narrow, label, options, device, dtype)
        if not seen[label].served:  # which may be for the width
            seen[label] = _of(record, label, options, device, dtype)
    return seen


def _of(record: Patch, label: str, options: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> Outlook:
    native = min(record.max_positions, LONGEST)
    asked = stretched(name_of(label), REACH * native, native) | patch_options(options)
    layers = asked.pop("layers", None)
    try:
        with torch.random.fork_rng(devices=[]):
            requests = plan(record, name_of(label), layers, asked)
            placements = planned(record, requests)
    except ValueError as error:
        return Outlook(REFUSED, "", "", one_line(error), asked)
    placement = next(p for p in placements if p.request in requests)
    encoding = placement.encoding
    path, learning = (path_of(record, placement, each, device.type, dtype) for each in (False, True))
    stages = tuple(stage for stage in STAGES if encoding.has(stage))
    return Outlook(
        place_of(record, placement), path.path, learning.path, path.why, asked, stages, any(p.requires_grad for p in encoding.parameters())
    )


def stretched(name: str, length: int, native: int) -> dict[str, Any]:
    """Options without which an encoding that is to reach further would have nothing to do."""
    return reaching(name, length, native) if name in ENCODINGS else {}


def representatives(seen: Mapping[str, Outlook]) -> list[str]:
    """The first label of each kind that is not refused; those that differ most from the ones before come first."""
    kinds = {each.kind: label for label, each in reversed([*seen.items()]) if each.served}
    first = [label for label in seen if label in kinds.values()]
    by_way: dict[Hashable, list[str]] = {}
    for label in first:
        by_way.setdefault((seen[label].place, seen[label].path), []).append(label)
    return [label for turn in itertools.zip_longest(*by_way.values()) for label in turn if label is not None]


def together(seen: Mapping[str, Outlook]) -> list[tuple[Outlook, Sequence[str]]]:
    """Labels with the same outlook, each with one of them."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for label, each in seen.items():
        groups.setdefault((each.place, each.path, each.in_training, each.why), []).append(label)
    return [(seen[labels[0]], labels) for _, labels in sorted(groups.items())]
