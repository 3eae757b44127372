"""What was found in a model: where its family keeps positions, and what it knows of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..encodings import ENCODINGS
from ..patching import Patch
from ..patching.asking import LOCAL, select
from .faults import nested


@dataclass(frozen=True)
class Found:
    """One model.

    Args:
        model_type: of the configuration. model_class, decoder: the class of the model, and of the decoder of text in it.
        wrappers: what is around that decoder, or put into it by others.
        slot: where the native encoding is, with its class; empty where there is none.
        native: the encoding that is there: rope, alibi, learned, or fixed numbers.
        seam: how the attention is reached. attention: the implementation that the model has.
        layers: in all. with_attention, with_positions, sliding, patched_by_default: their indices.
        heads: query heads, key-value heads, width, of the first layer with attention. rotated: dimensions of a head that turn.
        pairs: which dimensions turn together.
        native_context: tokens that the configuration says. scaling: the rotary parameters, by where they stand in it.
        live: the patches of hf_posenc that are in the model, as words.
    """

    model_type: str
    model_class: str
    decoder: str
    wrappers: tuple[str, ...]
    slot: str
    native: str
    seam: str
    attention: str
    layers: int
    with_attention: tuple[int, ...]
    with_positions: tuple[int, ...]
    sliding: tuple[int, ...]
    patched_by_default: tuple[int, ...]
    heads: tuple[int, int, int]
    rotated: int
    pairs: str
    native_context: int
    scaling: dict[str, Any]
    live: tuple[str, ...]

    def rows(self) -> Iterator[tuple[str, str]]:
        """What a report says of it, a line each."""
        around = "" if self.decoder == self.model_class else f", its decoder {self.decoder}"
        yield "model", f"{self.model_type} ({self.model_class}{around})"
        yield "around it", ", ".join(self.wrappers) or "nothing"
        yield "native encoding", f"{self.native}, in {self.slot}" if self.slot else self.native
        yield "attention", f"{self.attention}, reached through {self.seam}"
        yield "layers", f"{self.layers}, with attention: {ranges(self.with_attention)}"
        yield "with positions", ranges(self.with_positions)
        yield "sliding", ranges(self.sliding)
        yield "a patch covers", ranges(self.patched_by_default)
        yield "heads", f"{self.heads[0]} of width {self.heads[2]}, {self.heads[1]} of keys and values"
        yield "rotation", f"{self.rotated} dimensions, pairs: {self.pairs}" if self.rotated else "none"
        yield "native context", f"{self.native_context:,} tokens"
        for name, parameters in self.scaling.items():
            yield name, ", ".join(f"{key} {value}" for key, value in parameters.items())
        yield "patched", "; ".join(self.live) or "no"


def found_in(record: Patch, model: nn.Module, live: Iterable[str] = ()) -> Found:
    """What was found in `model`, around the decoder of `record`."""
    architecture, backbone, config = record.architecture, record.backbone, record.native_config()
    attentions, types = record.attentions, architecture.layer_types(config)
    geometry = record.geometry(min(attentions))
    positional = tuple(i for i, attention in attentions.items() if not architecture.rotates or architecture.uses_slot(attention))
    rotates = architecture.rotates and ENCODINGS[architecture.native_name].rotary and bool(positional)
    has_slot = architecture.has_slot(config)
    native = "learned" if architecture.is_learned else architecture.native_name if architecture.rotates else "fixed numbers"
    return Found(
        model_type=record.model.config.model_type,
        model_class=type(record.model).__name__,
        decoder=type(backbone).__name__,
        wrappers=tuple(wrappers(model, record)),
        slot=f"{architecture.slot} ({type(record.native).__name__})" if has_slot else "",
        native=native if has_slot or native != "rope" else "none",
        seam=str(architecture.seam),
        attention=record.live_backend,
        layers=record.num_layers,
        with_attention=tuple(attentions),
        with_positions=positional,
        sliding=tuple(i for i in attentions if types[i] in LOCAL),
        patched_by_default=select(None, record),
        heads=(geometry.num_heads, geometry.num_kv_heads, geometry.head_dim),
        rotated=geometry.rotary_dim if rotates else 0,
        pairs=pairs(record) if rotates else "",
        native_context=record.max_positions,
        scaling={name: dict(parameters) for name, parameters in nested(config).items()},
        live=(*live, *(f"{p.request.name} on layers {ranges(p.layers)}" for p in record.placements)),
    )


def pairs(record: Patch) -> str:
    """Which dimensions of a head turn together, in words."""
    architecture = record.architecture
    words = "neighbours" if architecture.interleaved else "halves"
    return words + ", the last of the head" * architecture.rotates_last + ", backwards" * architecture.backwards


def wrappers(model: nn.Module, record: Patch) -> Iterator[str]:
    """What is around the decoder, from the outside in, and what others have put into it."""
    adapters = getattr(model, "peft_config", None) or getattr(record.model, "peft_config", None) or {}
    for name, adapter in adapters.items():
        tokens = f", {adapter.num_virtual_tokens} virtual tokens first" if getattr(adapter, "is_prompt_learning", False) else ""
        yield f"PEFT {getattr(adapter.peft_type, 'value', adapter.peft_type)} {name!r}{tokens}"
    for holder in record.holders:
        if holder is not record.backbone:
            yield type(holder).__name__
    quantised = getattr(record.model.config, "quantization_config", None)
    if quantised is not None:
        said = quantised if isinstance(quantised, dict) else vars(quantised)
        yield f"quantised ({getattr(said.get('quant_method'), 'value', said.get('quant_method'))})"
    places = {str(p.device) for p in record.backbone.parameters()}
    if len(places) > 1:
        yield f"on several devices ({', '.join(sorted(places))})"


def ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 as "0-2, 5"."""
    runs = itertools.groupby(enumerate(sorted(numbers)), lambda at: at[1] - at[0])
    ends = [[number for _, number in run] for _, run in runs]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in ends) or "none"
