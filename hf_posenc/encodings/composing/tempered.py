"""Any encoding with a temperature."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...registry import suggestion
from ..base import ENCODINGS, Block, Geometry, PositionalEncoding, Region, create
from ..naming import EMBEDDING, STAGES
from ..temperature.base import Temperature
from .made import ByParts, Composed, named, within

SUFFIX = "_scale"
"""What may be left out of the name of a temperature, where it can be nothing else."""


class Tempered(Composed):
    """Around an encoding: its queries are multiplied after it has turned them."""

    heat: Temperature

    def project(self) -> None:
        super().project()
        self.heat.project()


class TemperedRotation(Tempered):
    """Around one that does the same to all pairs."""

    def rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        q, k = super().rotate(q, k, q_pos, k_pos)
        return self.heat.heated(q, q_pos), k


class TemperedQueries(TemperedRotation):
    """Around one that has its own way with the queries of keys that are cached as they are turned."""

    def _rotate_query(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        q, k = super()._rotate_query(q, k, q_pos, k_pos)
        return self.heat.heated(q, q_pos), k


class TemperedStill(TemperedRotation):
    """Around one that leaves keys as they are."""

    caches = "raw"


class TemperedMeeting(Tempered):
    """Around one whose queries and keys meet in another way."""

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        q, k = super().meet(block)
        width = block.q.shape[-1] if self.adds_columns else q.shape[-1]
        return torch.cat((self.heat.heated(q[..., :width], block.q_pos), q[..., width:]), -1), k


class TemperedMix(Tempered):
    """Around one that makes products of the queries of a block."""

    def mix(self, scores: Tensor, block: Block) -> Tensor:
        return super().mix(scores, dataclasses.replace(block, q=self.heat.heated(block.q, block.q_pos)))


class TemperedRegions(Tempered):
    """Around one that has regions."""

    def regions(self, q_pos: Tensor, k_pos: Tensor) -> list[Region]:
        return [region._replace(rotate=partial(_turned, self.heat, region.rotate)) for region in super().regions(q_pos, k_pos)]


def _turned(heat: Temperature, rotate: Callable, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
    q, k = rotate(q, k, q_pos, k_pos)
    return heat.heated(q, q_pos), k


def tempered(value: Any, name: str, geometry: Geometry, options: dict[str, Any]) -> PositionalEncoding:
    """The encoding `name` with a temperature: a name, or {"name": ...} with its options.

    Raises:
        ValueError: it is no temperature.
    """
    heat = temperature(value, geometry)
    encoding: Any = create(name, geometry, **options)
    # What one module for all layers holds, cannot differ by layer.
    shared = encoding.has(*EMBEDDING) or next(encoding.parameters(), None) is not None
    per_layer = encoding.per_layer or (heat.per_layer and not shared)
    kinds = {"meet": TemperedMeeting, "regions": TemperedRegions, "_rotate_query": TemperedQueries}
    kinds |= dict.fromkeys(("rotate", "cached_key"), TemperedRotation)
    outer = [next((kind for stage, kind in kinds.items() if encoding.has(stage)), TemperedStill)]
    encoding = within([*outer, *[TemperedMix] * encoding.mixes_products], encoding)
    encoding.heat, encoding.per_layer = heat, per_layer
    return encoding


def temperature(value: Any, geometry: Geometry) -> Temperature:
    """The temperature that the option `temperature` asks for."""
    asked, options = named("temperature", value)
    known = [name for name in ENCODINGS if issubclass(ENCODINGS[name], Temperature)]
    name = next((name for name in (asked, asked + SUFFIX) if name in known), None)
    if name is None:
        raise ValueError(f"{asked!r} is no temperature.{suggestion(asked, known)} There are {', '.join(known)}")
    found = create(name, geometry, **options)
    assert isinstance(found, Temperature)
    return found


def turns(encoding: PositionalEncoding) -> bool:
    """Whether queries or keys are turned, beyond a factor on the queries."""
    if isinstance(encoding, ByParts):
        return any(turns(part) for part in encoding.encodings())
    cls = encoding.made_of[-1] if isinstance(encoding, Composed) else type(encoding)
    return not issubclass(cls, Temperature) and (cls.has("rotate", "regions", "meet"))


def tells_positions(encoding: PositionalEncoding) -> bool:
    """Whether the scores of a query's keys depend on where they are: a temperature alone multiplies them all."""
    if isinstance(encoding, ByParts):
        return any(tells_positions(part) for part in encoding.encodings())
    classes = encoding.made_of if isinstance(encoding, Composed) else (type(encoding),)
    return any(cls.has(*STAGES) for cls in classes if not issubclass(cls, Tempered | Temperature))
