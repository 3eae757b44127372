"""What was changed in one model, and how it was before."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..architectures import Architecture
from ..architectures.slots import Group
from ..attention.entry import PREFIX
from ..attention.infused import Projections
from ..attention.settled import Settled
from ..encodings import Geometry, PositionalEncoding, create, current
from ..encodings.naming import BEFOREHAND, EMBEDDING, STAGES

RECORD = "posenc_patch"
"""Attribute of a backbone that holds its `Patch`."""
ATTRIBUTE = "positional_encoding"
"""Submodule of a backbone that holds the first encoding; later ones are numbered from 1."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One call of `patch`: an encoding by name, its options, and the layers it is for."""

    name: str
    options: dict[str, Any]
    layers: tuple[int, ...]

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any], layers: Iterable[int]) -> Request:
        """Under the names that encoding and options have now."""
        return cls(*current(name, options), tuple(layers))


@dataclasses.dataclass
class Placement:
    """One encoding in a model: a request, or the part of it that shares one native geometry."""

    request: Request
    layers: tuple[int, ...]
    encoding: PositionalEncoding
    attribute: str
    native: bool
    """In the native slot, with stock attention; otherwise in the attention function or the embeddings."""
    beside: bool = False
    """The native encoding of its layers stays, and this acts in the attention function beside it."""
    projections: dict[int, Projections] = dataclasses.field(default_factory=dict)
    """By layer, what makes its queries and keys, for an encoding that acts on what these are made of."""
    table: nn.Module | None = None
    """While the placement is out of the model: the module that held its table. An optimizer may know the parameter."""

    @property
    def in_table(self) -> bool:
        """In the place of the model's own position table, which then holds its parameters."""
        return self.native and self.encoding.table_rows() is not None

    @property
    def in_attention(self) -> bool:
        return not self.native and any(self.encoding.has(stage) for stage in STAGES if stage not in BEFOREHAND)


class Patch:
    """The encodings that one model has now, and what it had before.

    Attributes:
        native: the module that the family put into its slot.
        placements: what is installed, in the order of installation; empty for a stock model.
        shared: the configuration before any patch, which other models may have too. config_class: its class.
        config_before: entries of it that a patch has changed, as they were.
        handles: the hooks that are in.
        settled: the positions of the forward pass that the backbone is in.
        stock: transformers alone would load the saved checkpoint.
    """

    def __init__(self, model: PreTrainedModel, architecture: Architecture, backbone: PreTrainedModel):
        self.model, self.architecture, self.backbone = model, architecture, backbone
        self.native: nn.Module = architecture.native(backbone)
        self.config_class, self.config_before = type(backbone.config), cast(dict[str, Any], {})
        self.shared = backbone.config
        self.placements: list[Placement] = []
        self.handles: list[Any] = []
        self.stock = False
        self.settled = Settled(architecture.hands_positions)

    @property
    def attentions(self) -> dict[int, Any]:
        """The attention modules by layer."""
        return self.architecture.attentions(self.backbone)

    @property
    def num_layers(self) -> int:
        """Layers of the model, those without attention among them."""
        return len(self.architecture.stack(self.backbone))

    @property
    def holders(self) -> list[Any]:
        """The models that the backbone is in, and itself: each can be saved."""
        models = [module for module in self.model.modules() if isinstance(module, PreTrainedModel)]
        return [model for model in models if any(module is self.backbone for module in model.modules())]

    @property
    def beside_encoder(self) -> bool:
        """Whether an encoder has the configuration of the decoder, and must not be told what the decoder is."""
        return self.shared.is_encoder_decoder and any(m.config is self.shared for m in self.holders if m is not self.backbone)

    @property
    def slot(self) -> nn.Module:
        """What is in the slot of the family now."""
        return self.architecture.native(self.backbone)

    @property
    def embedding(self) -> torch.Tensor:
        held: Any = self.backbone.get_input_embeddings()
        return held.weight if hasattr(held, "weight") else next(held.parameters())  # of several, that make one vector

    @property
    def device(self) -> torch.device:
        """Where encodings live: with the embeddings, or where accelerate computes with them when it has offloaded them."""
        return _place(self.backbone.get_input_embeddings())

    def home(self, placement: Placement) -> torch.device:
        """Where the encoding of `placement` lives: with its layers, if it acts in those alone and they are all in one place.

        While a model is built to be loaded it is on the meta device, but for numbers that some families draw (DiffLlama).
        """
        attentions = [self.attentions[i] for i in placement.layers if placement.in_attention and not placement.encoding.has(*EMBEDDING)]
        places = {_place(attention) for attention in attentions}
        return places.pop() if len(places) == 1 and self.device.type != "meta" else self.device

    @property
    def live_backend(self) -> str:
        """The attention backend that the user chose."""
        return (self.backbone.config._attn_implementation or "eager").removeprefix(PREFIX)

    @property
    def context_length(self) -> int | None:
        """The length in tokens that the placements promise; None where they leave the model's own."""
        return max((p.encoding.context_length or 0 for p in self.placements), default=0) or None

    @property
    def said_length(self) -> dict[str, int]:
        """What the configuration says of the length that the placements promise."""
        length = self.context_length
        return self.architecture.said_length(self.backbone.config, length) if length else {}

    @property
    def max_positions(self) -> int:
        """The context length in tokens that the configuration says now."""
        return self.architecture.max_positions(self.backbone.config)

    @property
    def native_is_gone(self) -> bool:
        """The checkpoint had no place for the native encoding. (What accelerate has offloaded is on the meta device too.)"""
        tensors = (*self.native.buffers(), *self.native.parameters())
        return any(x.is_meta for x in tensors) and not hasattr(self.native, "_hf_hook")

    def holder(self, placement: Placement) -> tuple[str, Any]:
        """Name on the backbone, and module, of what holds the parameters of `placement` now; PEFT may have wrapped it."""
        name = self.architecture.slot if placement.in_table else placement.attribute
        return name, self.backbone.get_submodule(name)

    @property
    def learned(self) -> list[str]:
        """Names on the backbone of the modules that hold learned parameters of the placements."""
        return [name for name, module in map(self.holder, self.placements) if list(module.parameters())]

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """The learned parameters of the placements by name on the backbone, without the copies that PEFT trains."""
        held = [(name, getattr(module, "original_module", module)) for name, module in map(self.holder, self.placements)]
        return {f"{name}.{own}": value for name, module in held for own, value in module.named_parameters()}

    def group(self, layer: int) -> Group:
        """The native frequencies that `layer` uses."""
        return self.architecture.group(self.backbone.config, layer)

    def geometry(self, layer: int) -> Geometry:
        """What encodings may know about the model around `layer`, from its state before any patch."""
        config, native = self.native_config(), self.native
        if any(buffer.is_meta for buffer in native.buffers()):
            native = self.architecture.fresh(native, config)
        geometry = self.architecture.geometry(self.architecture.config_of(config, layer), native, self.group(layer))
        return dataclasses.replace(geometry, layer=layer)

    def rotation(self, layer: int) -> PositionalEncoding:
        """The rotation that stands on the geometry of `layer`: the native one, its frequencies as they are, where it has one."""
        return create("rope", dataclasses.replace(self.geometry(layer), rope_type="default", rope_parameters=()))

    def alike(self, layers: Iterable[int], *rotary: bool) -> list[tuple[int, ...]]:
        """`layers`, apart where one encoding cannot serve them all: a `rotary` one stands on the native frequencies, others count heads."""
        config, parts = self.native_config(), cast(dict[tuple, tuple[int, ...]], {})
        for layer in layers:
            kind = tuple(self.architecture.kind(config, layer, each) for each in rotary)
            parts[kind] = (*parts.get(kind, ()), layer)
        return list(parts.values())

    def native_config(self) -> PretrainedConfig:
        """The configuration as it was before any patch."""
        config = copy.deepcopy(self.backbone.config)
        config.__class__ = self.config_class
        for name, value in self.config_before.items():
            setattr(config, name, copy.deepcopy(value))
        return config


def _place(module: Any) -> torch.device:
    """Where `module` computes."""
    owner, held = next((owner, held) for owner in module.modules() for held in owner.parameters(recurse=False))
    executes = getattr(getattr(owner, "_hf_hook", None), "execution_device", None)
    return torch.device(executes) if held.is_meta and executes is not None else held.device


def requests_of(placements: Sequence[Placement]) -> list[Request]:
    """The calls of `patch` that led to `placements`, each once."""
    return list({id(p.request): p.request for p in placements}.values())


def written(placements: Sequence[Placement]) -> list[dict[str, Any]]:
    """What a file says of `placements`: the calls of `patch` that led to them."""
    return [{**dataclasses.asdict(request), "layers": list(request.layers)} for request in requests_of(placements)]


def attribute_name(index: int) -> str:
    """Where on the backbone the encoding number `index` lives."""
    return f"{ATTRIBUTE}_{index}" if index else ATTRIBUTE
