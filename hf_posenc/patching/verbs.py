"""The verbs: putting encodings into a model, and taking them out again."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architectures.base import forward_is_foreign
from ..encodings import ENCODINGS
from ..encodings.base import COMPOSITIONS
from ..encodings.naming import EMBEDDING, STAGES
from ..encodings.rotary.scaling import ScaledRoPE
from ..verdict import warn
from .installing import extend_to, replace, uninstall
from .placing import planned
from .proof import prove
from .recognising import architecture_of
from .record import RECORD, Patch, Request, requests_of

Model = TypeVar("Model", bound=nn.Module)
LOCAL = ("sliding_attention", "chunked_attention")
"""Layer types that see a stretch of the text alone."""
Layers = None | str | int | slice | Sequence[int]


def patch(model: Model, name: str, *, layers: Layers = None, verify: bool = True, **options: Any) -> Model:
    """Replace the positional encoding of `model`, in place.

    A second patch replaces the first, except on disjoint `layers`, where both stay. Nothing but this instance changes, and an
    error leaves it exactly as it was.

    Args:
        model: a transformers decoder, or a PEFT model around one.
        name: one of `list_encodings()`.
        layers: which layers: indices, a slice, or "all". By default every layer that has a positional encoding, except the
            sliding-window layers of a model that has both kinds, if they have an encoding of their own.
        verify: first show, on a handful of tokens, that this model does what the patch takes for granted (`proof`); done once for
            each class, configuration and request.
        options: of the encoding; see `describe(name)`.

    Returns:
        the model.

    Raises:
        ValueError: an unknown name, option or layer; a model that is not supported; a patch that would have no effect; an
            attention backend that cannot carry the encoding; a model on which the patch is shown not to work.
    """
    if torch.get_default_device().type == "meta":
        raise ValueError(
            'an encoding has no numbers within torch.device("meta"), where from_pretrained builds models: patch once the model is there'
        )
    record = patch_of(model)
    if record.placements:
        _check_model(record)
    request = Request(name, dict(options), _select(layers, record))
    _check_reach(request, layers, record)
    after = planned(record, request)
    if verify:
        prove(record, requests_of(after))
    replace(record, after)
    if any(p.in_attention and p.request is request for p in record.placements):
        warn(name, record.device)
    return model


def unpatch(model: Model) -> Model:
    """Give `model` its own positional encoding back, bit for bit; a model that was never patched is left alone.

    Raises:
        ValueError: the model was loaded from a checkpoint that no longer holds its own position table.
    """
    record = patch_of(model)
    if record.placements:
        if record.native_is_gone:
            record.architecture.fresh(record.native, record.native_config())
        uninstall(record)
    return model


@contextmanager
def patched(model: Model, name: str, *, layers: Layers = None, verify: bool = True, **options: Any) -> Iterator[Model]:
    """`patch` for the length of a block; afterwards the model has the encodings it had before."""
    record = patch_of(model)
    before = list(record.placements)
    patch(model, name, layers=layers, verify=verify, **options)
    try:
        yield model
    finally:
        record = patch_of(model)
        replace(record, before)


def patch_of(model: nn.Module) -> Patch:
    """The patch record of a transformers model: the live one, or a new empty one.

    Raises:
        ValueError: the model cannot be patched.
    """
    base: Any = model
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        base = cast(Any, model).get_base_model()
    if not isinstance(base, PreTrainedModel):
        raise ValueError(f"expected a transformers model, got {type(model).__name__}; unwrap it first (for DDP: model.module)")
    architecture = architecture_of(base)
    backbone = architecture.backbone(base)
    live = backbone.__dict__.get(RECORD)
    if live is not None:
        return extend_to(live, base)
    record = Patch(base, architecture, backbone)
    _check_model(record)
    return record


def _check_model(record: Patch) -> None:
    record.architecture.check(record.backbone)
    if not record.attentions:
        raise ValueError(f"no layer of {type(record.backbone).__name__} has an attention to patch")
    for i, attention in record.attentions.items():
        if forward_is_foreign(attention):
            raise ValueError(
                f"the attention of layer {i} ({type(attention).__name__}) has been replaced by another tool; "
                "undo that before patching, so that the two cannot cancel each other silently"
            )


def _select(layers: Layers, record: Patch) -> tuple[int, ...]:
    """The layer indices meant by `layers`."""
    everything = range(record.num_layers)
    if layers is None:
        return _default_layers(record)
    if isinstance(layers, str):
        if layers != "all":
            raise ValueError(f"layers is None, 'all', an index, a slice or a list of indices, got {layers!r}")
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


def _check_reach(request: Request, layers: Layers, record: Patch) -> None:
    """Refuse to limit to some layers what reaches all of them, and to take positions from layers that have none."""
    cls = ENCODINGS[request.name]
    does_nothing = not cls.has(*STAGES) and not any(option in request.options for option in COMPOSITIONS)
    if cls.has(*EMBEDDING) and layers not in (None, "all"):
        raise ValueError(f"{request.name!r} is added to the embeddings and reaches every layer; layers= cannot restrict it")
    complete = len(request.layers) == len(record.attentions)
    if not complete and not record.architecture.rotates and does_nothing:
        raise ValueError(f"the position table of this model feeds every layer, so {request.name!r} cannot be limited to some of them")
    uses = {i: record.architecture.uses_slot(attention) for i, attention in record.attentions.items()}
    if does_nothing and not any(uses[i] for i in request.layers):
        raise ValueError(f"layers {', '.join(map(str, request.layers))} have no positions by design: the patch would have no effect")
    if issubclass(cls, ScaledRoPE) and not any(uses.values()) and record.architecture.native_table(record.native) is None:
        raise ValueError(
            f"the attention of this model has no positions by design: there is no rotation that {request.name!r} could stretch"
        )
