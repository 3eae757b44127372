"""What is live in a model, in the terms that other libraries know: one table of frequencies, and a factor on cos and sin."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..architectures.slots import Group, RotarySlot
from ..encodings import ENCODINGS, Geometry, PositionalEncoding, create
from ..encodings.base import COMPOSITIONS
from ..encodings.naming import STAGES
from ..encodings.rotary.by_length import RoPEByLength
from ..encodings.rotary.rope import BY_LENGTH
from ..patching import Patch, Placement, patch_of
from .schemes import unscaled

FREEZE = "--freeze_at LENGTH (freeze_at= from Python) exports the frequencies of that length"
BEYOND = "is more than one table of frequencies: other libraries have no place for it in this model"


@dataclasses.dataclass(frozen=True)
class Rotation:
    """One rotation for all layers that rotate.

    Args:
        name: of the encoding; "stock" for the model's own.
        geometry: of the model as it came.
        config: entries of its configuration, as it came.
        frequencies: radians per token of each pair, [r/2] float32.
        attention_factor: factor on cos and sin.
        parameters: what transformers calls it, the entries of `rope_parameters`; None where it has no name for it.
        context_length: tokens that it is for.
        frozen_at: length of a text whose frequencies these are, where they depend on it.
    """

    name: str
    geometry: Geometry
    config: Mapping[str, Any]
    frequencies: Tensor
    attention_factor: float
    parameters: Mapping[str, Any] | None
    context_length: int
    frozen_at: int | None = None

    @property
    def native_length(self) -> int:
        """Tokens that the model was trained for."""
        return dict(self.geometry.rope_parameters).get("original_max_position_embeddings") or self.geometry.max_positions


def rotation_of(model: PreTrainedModel, freeze_at: int | None = None) -> Rotation:
    """The live encoding of a model as one rotation.

    Args:
        freeze_at: length of a text, in tokens, whose frequencies are meant, for encodings that change with it.

    Raises:
        ValueError: it is more, or something else.
    """
    record = patch_of(model)
    if record.backbone.config is not model.config:
        raise ValueError(f"{type(model).__name__} holds a decoder in a configuration of several; export serves models of text alone")
    rotating = [layer for layer, attention in record.attentions.items() if record.architecture.uses_slot(attention)]
    if not rotating or not record.architecture.rotates or not record.architecture.has_slot(record.native_config()):
        raise ValueError(f"a {model.config.model_type} model has no rotation of its own, and no engine puts one there")
    if len(groups := {record.group(layer) for layer in rotating}) > 1:
        raise ValueError(f"layers of several kinds turn differently here ({', '.join(map(str, sorted(map(str, groups))))})")
    if isinstance(record.slot, RotarySlot) and not record.slot.is_whole():
        raise ValueError("the native slot holds other frequencies than the patch put there: patch again")
    placement = _only(record, rotating)
    geometry = record.geometry(rotating[0])
    encoding = _native(geometry) if placement is None else placement.encoding
    rotation = Rotation(
        name="stock" if placement is None else placement.request.name,
        geometry=geometry,
        config=_entries(record.native_config(), model),
        frequencies=torch.zeros(geometry.rotary_dim // 2),
        attention_factor=1.0,
        parameters=None,
        context_length=record.context_length or record.max_positions,
    )
    return turned(rotation, encoding, freeze_at)


def turned(rotation: Rotation, encoding: PositionalEncoding, freeze_at: int | None) -> Rotation:
    """`rotation` with the numbers of `encoding`, at a length of a text if they depend on that; without a rotation they are zeros."""
    if isinstance(encoding, RoPEByLength) and encoding.frequencies() is None:
        if freeze_at is None:
            raise ValueError(f"the frequencies of {encoding.name!r} change with the length of the text; {FREEZE}")
        last = torch.tensor([[freeze_at - 1]])
        factor = math.sqrt(float(encoding.query_factor(last)) * encoding.attention_factor)
        length = max(freeze_at, rotation.native_length)
        held = encoding.frequencies_for(last)[0, 0].detach(), factor
        return dataclasses.replace(_with(rotation, held), frozen_at=freeze_at, context_length=length)
    if freeze_at is not None:
        raise ValueError(f"the frequencies of {encoding.name!r} are those of any length: leave freeze_at out")
    return _with(rotation, encoding.frequencies(), encoding.rope_parameters() if encoding.has("rotate") else None)


def _with(rotation: Rotation, held: tuple[Tensor, float] | None, parameters: Mapping[str, Any] | None = None) -> Rotation:
    if held is None:
        return rotation
    frequencies, factor = held[0].detach().to("cpu", torch.float32), float(held[1])
    return dataclasses.replace(rotation, frequencies=frequencies, attention_factor=factor, parameters=parameters)


def _only(record: Patch, rotating: Sequence[int]) -> Placement | None:
    """The placement that all rotating layers have; None for a stock model.

    Raises:
        ValueError: there are several, or it is no rotation.
    """
    if not record.placements:
        return None
    for placement in record.placements:
        if reason := _beyond(placement):
            raise ValueError(f"{placement.request.name!r} {reason}, and {BEYOND}")
    first = record.placements[0]
    layers = {layer for p in record.placements if p.encoding is first.encoding for layer in p.layers}
    if not set(rotating) <= layers or len(record.placements) > 1:
        raise ValueError("layers turn differently; other libraries have one rotation for all")
    return first


def is_table(encoding: PositionalEncoding) -> bool:
    """Whether an encoding is one table of frequencies, at least at one length of a text; of zeros if it does nothing."""
    if isinstance(encoding, RoPEByLength):
        return True
    held = encoding.frequencies()
    if held is None:
        return not encoding.has(*STAGES)
    return encoding.only("rotate") and 2 * len(held[0]) == encoding.geometry.rotary_dim


def _beyond(placement: Placement) -> str:
    """What an encoding does that is no table of frequencies; empty if it is one."""
    composed = [option for option in COMPOSITIONS if placement.request.options.get(option) is not None]
    if composed:
        return f"has {', '.join(composed)}"
    if is_table(placement.encoding) and not placement.beside:
        return ""
    acts = " and ".join(stage for stage in STAGES if placement.encoding.has(stage))
    return f"acts in `{acts}`" + (" beside the encoding of the model" if placement.beside else "")


def _native(geometry: Geometry) -> PositionalEncoding:
    """What a model came with, as an encoding: one that follows the length of the text where its own does."""
    if geometry.rope_type not in BY_LENGTH:
        return create("rope", geometry)
    if geometry.rope_type in ENCODINGS:
        return create(geometry.rope_type, geometry)
    factor = dict(geometry.rope_parameters)["factor"]
    return create("dynamic_ntk", unscaled(geometry), factor=factor, step=1)


def _entries(config: PretrainedConfig, model: PreTrainedModel) -> dict[str, Any]:
    return config.to_dict() | {"architectures": [type(model).__name__]}


def geometry_of(entries: Mapping[str, Any]) -> Geometry:
    """What transformers makes of the entries of a configuration, in the first layer that rotates; no weights are made.

    Raises:
        ValueError: it makes nothing of them.
    """
    kind = entries["model_type"]
    try:
        config = AutoConfig.for_model(**entries)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"transformers makes no {kind} model of this configuration: {error}") from error
    record = patch_of(model)
    rotating = geometries_of(record)
    return next(iter(rotating.values())) if rotating else record.geometry(0)


def geometries_of(record: Patch) -> dict[Group, Geometry]:
    """What an encoding may know about the layers that rotate, by their kind: the first layer of each."""
    if not record.architecture.rotates or not record.architecture.has_slot(record.native_config()):
        return {}
    rotating = [layer for layer, attention in record.attentions.items() if record.architecture.uses_slot(attention)]
    first = {record.group(layer): layer for layer in reversed(rotating)}
    return {group: record.geometry(layer) for group, layer in sorted(first.items(), key=lambda at: at[1])}
