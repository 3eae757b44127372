"""Putting encodings into a model, and taking them out again."""

from __future__ import annotations

import copy
import dataclasses
import inspect as python_inspect
import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .architectures import ARCHITECTURES, Architecture
from .architectures.base import Group, RotarySlot, forward_is_foreign
from .attention.entry import BACKENDS, BIASABLE, PREFIX, EncodingSite
from .attention.hooks import BackbonePositions, LayerRotation
from .checkpoint import SavePretrained
from .encodings import ENCODINGS, Geometry, PositionalEncoding, create
from .encodings.base import STAGES

Model = TypeVar("Model", bound=nn.Module)
Layers = None | str | int | slice | Sequence[int]
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


@dataclasses.dataclass
class Placement:
    """One encoding in a model: a request, or the part of it that shares one native geometry."""

    request: Request
    layers: tuple[int, ...]
    encoding: PositionalEncoding
    attribute: str
    native: bool
    """In the native slot, with stock attention; otherwise in the attention function or the embeddings."""
    table: nn.Module | None = None
    """While the placement is out of the model: the module that held its table. An optimizer may know the parameter."""

    @property
    def in_table(self) -> bool:
        """In the place of the model's own position table, which then holds its parameters."""
        return self.native and self.encoding.table_rows() is not None

    @property
    def in_attention(self) -> bool:
        return not self.native and any(self.encoding.has(stage) for stage in STAGES if stage != "embed")


class Patch:
    """Everything that was changed in one model, and how it was before."""

    def __init__(self, model: PreTrainedModel, architecture: Architecture, backbone: nn.Module):
        self.model, self.architecture, self.backbone = model, architecture, backbone
        self.native: nn.Module = getattr(backbone, architecture.slot)
        self.config_before: dict[str, Any] = {}
        self.placements: list[Placement] = []
        self.handles: list[Any] = []
        self.stock = False
        """transformers alone would load the saved checkpoint."""

    # -- what the model should be -------------------------------------------------------------------------------------

    def placed(self, request: Request, index: int, native_slot: bool = True) -> list[Placement]:
        """Build the encodings of a request, without touching the model."""
        rotary = ENCODINGS[request.name].rotary
        parts: dict[Group, list[int]] = {}
        for layer in request.layers:
            parts.setdefault(self.group(layer) if rotary else None, []).append(layer)
        return [self._place(request, tuple(layers), index + i, native_slot) for i, layers in enumerate(parts.values())]

    def _place(self, request: Request, layers: tuple[int, ...], index: int, native_slot: bool) -> Placement:
        encoding = create(request.name, self.geometry(self.group(layers[0])), **request.options)
        table = self.architecture.native_table(self.native)
        if table is not None:
            encoding.adopt(table)
        dtype = self._embedding.dtype if self._embedding.is_floating_point() else None
        encoding = encoding.to(self.device, dtype).train(self.model.training)
        slot_used = all(self.architecture.uses_slot(self.attentions[i]) for i in layers)
        native = native_slot and slot_used and self.architecture.can_hold(encoding)
        if not native:
            self.architecture.check_encoding(self.backbone, encoding)
        return Placement(request, layers, encoding, attribute_name(index), native)

    @property
    def attentions(self) -> list[nn.Module]:
        return self.architecture.attentions(self.backbone)

    @property
    def _embedding(self) -> torch.Tensor:
        return self.model.get_input_embeddings().weight

    @property
    def device(self) -> torch.device | str | int:
        """Where encodings live: with the embeddings, or where accelerate computes with them when it has offloaded them."""
        hook = getattr(self.model.get_input_embeddings(), "_hf_hook", None)
        executes = getattr(hook, "execution_device", None)
        return executes if self._embedding.is_meta and executes is not None else self._embedding.device

    @property
    def native_is_gone(self) -> bool:
        """The checkpoint had no place for the native encoding. (What accelerate has offloaded is on the meta device too.)"""
        tensors = (*self.native.buffers(), *self.native.parameters())
        return any(x.is_meta for x in tensors) and not hasattr(self.native, "_hf_hook")

    def group(self, layer: int) -> Group:
        """The native frequencies that `layer` uses."""
        return self.architecture.group(self.backbone.config, layer)

    def geometry(self, group: Group) -> Geometry:
        """What encodings may know about this model, from its state before any patch."""
        config, native = self.native_config(), self.native
        if any(buffer.is_meta for buffer in native.buffers()):
            native = self.architecture.fresh(native, config)
        return self.architecture.geometry(config, native, group)

    def native_config(self) -> PretrainedConfig:
        """The configuration as it was before any patch."""
        config = copy.deepcopy(self.backbone.config)
        for name, value in self.config_before.items():
            setattr(config, name, copy.deepcopy(value))
        return config

    # -- the attention backend ----------------------------------------------------------------------------------------

    @property
    def live_backend(self) -> str:
        """The backend that the user chose."""
        return (self.backbone.config._attn_implementation or "eager").removeprefix(PREFIX)

    def check_backend(self, backend: str, placements: list[Placement]) -> None:
        """Raise ValueError if `backend` cannot carry one of the placements."""
        for placement in placements:
            able = BIASABLE if placement.encoding.has("bias") or placement.encoding.has("regions") else BACKENDS
            if placement.in_attention and backend not in able:
                raise ValueError(
                    f"{placement.request.name!r} changes the attention scores, which attention backend {backend!r} cannot carry; "
                    f"load the model with attn_implementation= one of {', '.join(able)}"
                )

    def change_backend(self, backend: str) -> None:
        """Follow a user who sets another attention implementation on a patched model."""
        self.check_backend(backend, self.placements)
        self.backbone.config._attn_implementation = PREFIX + backend

    # -- doing and undoing --------------------------------------------------------------------------------------------

    def install(self, placements: list[Placement]) -> None:
        """Put the placements in. An error leaves the model as `uninstall` does."""
        try:
            self._install(placements)
        except BaseException:
            self.uninstall()
            raise

    def _install(self, placements: list[Placement]) -> None:
        backbone, architecture, attentions = self.backbone, self.architecture, self.attentions
        self.placements = placements
        wants = {i: p.encoding if p.native else None for p in placements for i in p.layers}
        contents, alone = architecture.slot_contents(backbone, wants)
        config = self._stock_config(contents, alone)
        setattr(backbone, RECORD, self)
        setattr(backbone, architecture.slot, self._slot(contents))
        for placement in placements:
            if not placement.in_table:
                backbone.add_module(placement.attribute, placement.encoding.to(self.device))
            if placement.in_attention:
                for i in placement.layers:
                    attentions[i].posenc_site = EncodingSite(backbone, placement.attribute)
        for i in alone:
            self._rotate_alone(attentions[i], i, wants[i])
        if any(not p.native or p.in_table for p in placements):
            hook = BackbonePositions(self, list(python_inspect.signature(type(backbone).forward).parameters)[1:])
            self.handles.append(backbone.register_forward_pre_hook(hook, with_kwargs=True))
        self._configure(config)

    def _slot(self, contents: dict[Group, PositionalEncoding | None]) -> nn.Module:
        """What goes into the native slot."""
        for placement in self.placements:
            if placement.table is not None:
                return placement.table.to(self.device, self._embedding.dtype)
        return self.architecture.holding(self.native, contents) if contents else self.native

    def _stock_config(self, contents: dict[Group, PositionalEncoding | None], alone: list[int]) -> PretrainedConfig | None:
        """The configuration that says all of this to transformers, where there is one."""
        config = self.native_config()
        reached = self._context_length()
        if reached:
            config.max_position_embeddings = reached
        self.stock = False
        if alone or not contents or not all(p.native for p in self.placements):
            return None
        config = self.architecture.stock_config(self.native, config, contents)
        self.stock = config is not None
        return config

    def _context_length(self) -> int | None:
        return max((p.encoding.context_length or 0 for p in self.placements), default=0) or None

    def _rotate_alone(self, attention: nn.Module, layer: int, encoding: PositionalEncoding | None) -> None:
        """Serve one layer where its neighbours keep other frequencies."""
        group = self.group(layer)
        if encoding is not None:
            attention.add_module("posenc_rotary", RotarySlot(self.native, {group: encoding}))
        self.handles.append(attention.register_forward_pre_hook(LayerRotation(group), with_kwargs=True))

    def _configure(self, stock: PretrainedConfig | None) -> None:
        config = self.backbone.config
        changes: dict[str, Any] = {}
        if stock is not None and hasattr(stock, "rope_parameters"):
            changes["rope_parameters"] = stock.rope_parameters
        if self._context_length():
            changes["max_position_embeddings"] = self._context_length()
        if any(p.in_attention for p in self.placements):
            changes["_attn_implementation"] = PREFIX + self.live_backend
        for name, value in changes.items():
            self.config_before[name] = copy.deepcopy(getattr(config, name))
            setattr(config, name, value)
        self._save_as_patched()

    def _save_as_patched(self) -> None:
        """Let `save_pretrained` say what the model is, unless transformers can be told."""
        if self.placements and not self.stock:
            for model in (self.model, self.model.base_model):
                model.save_pretrained = SavePretrained(self, model)

    def extend_to(self, model: PreTrainedModel) -> Patch:
        """The same patch, seen from the model around a backbone that was patched on its own."""
        if model is not self.model and model.base_model is self.model:
            self.model = model
            self._save_as_patched()
        return self

    def uninstall(self) -> None:
        """Put everything back; what was never done is skipped."""
        backbone = self.backbone
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        for attention in self.attentions:
            attention.__dict__.pop("posenc_site", None)
            attention._modules.pop("posenc_rotary", None)
        for placement in self.placements:
            self._take_out(placement)
        self._restore_native()
        if "_attn_implementation" in self.config_before:
            self.config_before["_attn_implementation"] = self.live_backend
        for name, value in self.config_before.items():
            setattr(backbone.config, name, value)
        self.config_before.clear()
        for model in (self.model, self.model.base_model):
            model.__dict__.pop("save_pretrained", None)
        backbone.__dict__.pop(RECORD, None)

    def _take_out(self, placement: Placement) -> None:
        """Keep what the model really holds: it may have been trained, or wrapped (PEFT), since it was put in."""
        slot = getattr(self.backbone, self.architecture.slot)
        if placement.in_table and slot is not self.native:
            placement.table = slot
        placement.encoding = self.backbone._modules.pop(placement.attribute, placement.encoding)

    def _restore_native(self) -> None:
        has_table = bool(list(self.native.parameters()))
        if self.native_is_gone and not has_table:
            self.native = self.architecture.fresh(self.native, self.native_config())
        if not any(p.is_meta for p in self.native.parameters()):
            self.native.to(self.device, self._embedding.dtype if has_table else None)
        setattr(self.backbone, self.architecture.slot, self.native)


def attribute_name(index: int) -> str:
    """Where on the backbone the encoding number `index` lives."""
    return f"{ATTRIBUTE}_{index}" if index else ATTRIBUTE


# -- the verbs --------------------------------------------------------------------------------------------------------


def patch(model: Model, name: str, *, layers: Layers = None, **options: Any) -> Model:
    """Replace the positional encoding of `model`, in place.

    A second patch replaces the first, except on disjoint `layers`, where both stay. Nothing but this instance changes, and an
    error leaves it exactly as it was.

    Args:
        model: a transformers decoder, or a PEFT model around one.
        name: one of `list_encodings()`.
        layers: which layers: indices, a slice, or "all". By default every layer that has a positional encoding, except the
            sliding-window layers of a model that has both kinds.
        options: of the encoding; see `describe(name)`.

    Returns:
        the model.

    Raises:
        ValueError: an unknown name, option or layer; a model that is not supported; a patch that would have no effect; an
            attention backend that cannot carry the encoding.
    """
    record = patch_of(model)
    if record.placements:
        _check_model(record)
    request = Request(name, dict(options), _select(layers, record))
    _check_reach(request, layers, record)
    apply(record, request)
    return model


def apply(record: Patch, request: Request, native_slot: bool = True) -> None:
    """Carry out one request, beside those on other layers and in place of those on the same.

    Args:
        native_slot: use the native slot of the model where it can hold the encoding.
    """
    before = record.placements
    kept = [p for p in before if not set(p.request.layers) & set(request.layers)]
    after = [*kept, *record.placed(request, len(kept), native_slot)]
    after = [dataclasses.replace(p, attribute=attribute_name(i)) for i, p in enumerate(after)]
    record.check_backend(record.live_backend, after)
    _replace(record, before, after)


def _replace(record: Patch, before: list[Placement], after: list[Placement]) -> None:
    """Swap one list of placements for another; if that fails, the first is back."""
    if before:
        record.uninstall()
    try:
        if after:
            record.install(after)
    except BaseException:
        if before:
            record.install(before)
        raise


def unpatch(model: Model) -> Model:
    """Give `model` its own positional encoding back, bit for bit; a model that was never patched is left alone.

    Raises:
        ValueError: the model was loaded from a checkpoint that no longer holds its own position table.
    """
    record = patch_of(model)
    if record.placements:
        if record.native_is_gone:
            record.architecture.fresh(record.native, record.native_config())
        record.uninstall()
    return model


@contextmanager
def patched(model: Model, name: str, *, layers: Layers = None, **options: Any) -> Iterator[Model]:
    """`patch` for the length of a block; afterwards the model has the encodings it had before."""
    record = patch_of(model)
    before = list(record.placements)
    patch(model, name, layers=layers, **options)
    try:
        yield model
    finally:
        record = patch_of(model)
        _replace(record, record.placements, before)


def patch_of(model: nn.Module) -> Patch:
    """The patch record of a transformers model: the live one, or a new empty one.

    Raises:
        ValueError: the model cannot be patched.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
    if not isinstance(base, PreTrainedModel):
        raise ValueError(f"expected a transformers model, got {type(model).__name__}; unwrap it first (for DDP: model.module)")
    architecture = _architecture(base)
    backbone = architecture.backbone(base)
    live = backbone.__dict__.get(RECORD)
    if live is not None:
        return live.extend_to(base)
    record = Patch(base, architecture, backbone)
    _check_model(record)
    return record


def _architecture(model: PreTrainedModel) -> Architecture:
    model_type = model.config.model_type
    if model_type not in ARCHITECTURES:
        raise ValueError(f"model type {model_type!r} is not supported. Supported: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[model_type]


def _check_model(record: Patch) -> None:
    record.architecture.check(record.backbone)
    for i, attention in enumerate(record.attentions):
        if forward_is_foreign(attention):
            raise ValueError(
                f"the attention of layer {i} ({type(attention).__name__}) has been replaced by another tool; "
                "undo that before patching, so that the two cannot cancel each other silently"
            )


def _select(layers: Layers, record: Patch) -> tuple[int, ...]:
    """The layer indices meant by `layers`."""
    everything = range(len(record.attentions))
    if layers is None:
        return _default_layers(record)
    if isinstance(layers, str):
        if layers != "all":
            raise ValueError(f"layers is None, 'all', an index, a slice or a list of indices, got {layers!r}")
        return tuple(everything)
    if isinstance(layers, slice):
        layers = everything[layers]
    chosen = list(layers) if isinstance(layers, Iterable) else [layers]
    if not chosen:
        raise ValueError(f"layers= selects none of the {len(everything)} layers: the patch would have no effect")
    return tuple(sorted({_layer_index(i, len(everything)) for i in chosen}))


def _layer_index(i: Any, num_layers: int) -> int:
    """`i`, an integer of any library, counted from the first layer."""
    if isinstance(i, bool) or not hasattr(i, "__index__") or not -num_layers <= operator.index(i) < num_layers:
        raise ValueError(f"layer {i!r} does not exist; the model has layers 0 to {num_layers - 1}")
    return operator.index(i) % num_layers


def _default_layers(record: Patch) -> tuple[int, ...]:
    positional = [i for i, attention in enumerate(record.attentions) if record.architecture.uses_slot(attention)]
    types = record.architecture.layer_types(record.backbone.config)
    full = [i for i in positional if types[i] != "sliding_attention"]
    return tuple(full or positional)


def _check_reach(request: Request, layers: Layers, record: Patch) -> None:
    """Refuse to limit to some layers what reaches all of them, and to take positions from layers that have none."""
    cls = ENCODINGS[request.name]
    does_nothing = not any(cls.has(stage) for stage in STAGES)
    if cls.has("embed") and layers not in (None, "all"):
        raise ValueError(f"{request.name!r} is added to the embeddings and reaches every layer; layers= cannot restrict it")
    complete = len(request.layers) == len(record.attentions)
    if not complete and record.architecture.native_table(record.native) is not None and does_nothing:
        raise ValueError(f"the position table of this model feeds every layer, so {request.name!r} cannot be limited to some of them")
    if does_nothing and not any(record.architecture.uses_slot(record.attentions[i]) for i in request.layers):
        where = ", ".join(map(str, request.layers))
        raise ValueError(f"layers {where} have no positions by design: the patch would have no effect")
