"""The verbs: putting encodings into a model, and taking them out again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architectures.base import forward_is_foreign
from ..encodings import ENCODINGS
from ..encodings.base import COMPOSITIONS
from ..encodings.composing.embedded import OPTION as EMBEDDED
from ..encodings.naming import EMBEDDING, STAGES
from ..encodings.rotary.scaling import ScaledRoPE
from ..verdict import warn
from .asking import Asked, Layers, asked_for
from .installing import extend_to, replace, uninstall
from .placing import planned
from .proof import prove
from .recognising import architecture_of
from .record import RECORD, Patch, Placement, Request, requests_of

Model = TypeVar("Model", bound=nn.Module)


def patch(model: Model, name: Asked, *, layers: Layers = None, verify: bool = True, **options: Any) -> Model:
    """Replace the positional encoding of `model`, in place.

    A second patch replaces the first, except on disjoint `layers`, where both stay. Nothing but this instance changes, and an
    error leaves it exactly as it was.

    Args:
        model: a transformers decoder, or a PEFT model around one.
        name: one of `list_encodings()` or `list_mixes()`; or several encodings with the options of each, `layers` and `heads` among
            them: {"rope": {}, "nope": {"layers": "3::4"}}. One that leaves out its layers has the rest.
        layers: which layers: indices, a slice, also in words as "3::4", or "all". By default every layer that has a positional
            encoding, except the sliding-window layers of a model that has both kinds, if they have an encoding of their own; for a mix
            all layers.
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
    carry_out(record, plan(record, name, layers, options), verify)
    return model


def plan(record: Patch, name: Asked, layers: Layers, options: Mapping[str, Any]) -> list[Request]:
    """What `patch` is asked for.

    Raises:
        ValueError: as `patch` does, before any encoding is made.
    """
    requests = asked_for(record, name, layers, options)
    for request in requests:
        _check_reach(request, requests, layers not in (None, "all"), record)
    return requests


def carry_out(record: Patch, requests: Sequence[Request], verify: bool = True) -> None:
    """Do what is asked for, once it is shown to work."""
    after = planned(record, requests)
    _check_shares(record, after)
    if verify:
        prove(record, requests_of(after))
    replace(record, after)
    for request in requests:
        if any(p.in_attention and p.request is request for p in record.placements):
            warn(request.name, record.device)


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
def patched(model: Model, name: Asked, *, layers: Layers = None, verify: bool = True, **options: Any) -> Iterator[Model]:
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
    record = record_of(model)
    if RECORD not in record.backbone.__dict__:
        _check_model(record)
    return record


def record_of(model: nn.Module) -> Patch:
    """The same of a model that another tool may have changed.

    Raises:
        ValueError: its family cannot be patched.
    """
    base: Any = model
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        base = cast(Any, model).get_base_model()
    if not isinstance(base, PreTrainedModel):
        raise ValueError(f"expected a transformers model, got {type(model).__name__}; unwrap it first (for DDP: model.module)")
    architecture = architecture_of(base)
    backbone = architecture.backbone(base)
    live = backbone.__dict__.get(RECORD)
    return Patch(base, architecture, backbone) if live is None else extend_to(live, base)


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


def _check_shares(record: Patch, after: Sequence[Placement]) -> None:
    """Refuse new parameters in a model that FSDP2 has cut up: it does not know them, and each process would train its own."""
    known = [p.encoding for p in record.placements]
    learned = [p.request.name for p in after if p.encoding not in known and any(True for _ in p.encoding.parameters())]
    if learned and any(hasattr(module, "reshard") for module in record.model.modules()):
        raise ValueError(f"{learned[0]!r} has parameters, which FSDP has to know: patch the model before it is cut up among the processes")


def _check_reach(request: Request, requests: Sequence[Request], limited: bool, record: Patch) -> None:
    """Refuse to limit to some layers what reaches all of them, and to take positions from layers that have none.

    Args:
        requests: all that are made at once. limited: the layers were named.
    """
    cls = ENCODINGS[request.name]
    does_nothing = not cls.has(*STAGES) and not any(option in request.options for option in COMPOSITIONS)
    embedded = request.options.get(EMBEDDED)
    if (cls.has(*EMBEDDING) or embedded) and (limited or len(requests) > 1):
        which = repr(embedded or request.name)
        raise ValueError(
            f"{which} is added to the embeddings and reaches every layer; layers= cannot restrict it. Beside an encoding of the attention "
            f"it is an option of that one: patch(model, name, {EMBEDDED}={which})"
        )
    complete = {i for each in requests for i in each.layers} == set(record.attentions)
    if not complete and not record.architecture.rotates and does_nothing:
        raise ValueError(f"the position table of this model feeds every layer, so {request.name!r} cannot be limited to some of them")
    uses = {i: record.architecture.uses_slot(attention) for i, attention in record.attentions.items()}
    if does_nothing and not any(uses[i] for i in request.layers):
        raise ValueError(f"layers {', '.join(map(str, request.layers))} have no positions by design: the patch would have no effect")
    if issubclass(cls, ScaledRoPE) and not any(uses.values()) and record.architecture.native_table(record.native) is None:
        raise ValueError(
            f"the attention of this model has no positions by design: there is no rotation that {request.name!r} could stretch"
        )
