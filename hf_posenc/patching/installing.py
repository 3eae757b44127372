"""Doing and undoing in the modules of one model."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..architectures.slots import Group
from ..attention.ahead import NothingAhead
from ..attention.cached import arguments_of, changes_keys, no_continuous_batching
from ..attention.documents import hook_documents
from ..attention.entry import EncodingSite
from ..attention.hooks import ROTARY, BackbonePositions, CachedKeys, PartRotation, ReadableMask, TablePositions
from ..attention.infused import Followed, InfusedProjection, Projections
from ..attention.settled import Forget, Remember
from ..attention.tokens import NotedTokens
from ..encodings import PositionalEncoding
from ..verdict import avoided
from .backends import check_backend
from .configuration import configure, own_config, restore, share, stock_config
from .record import RECORD, Patch, Placement
from .saving import save_as_patched, save_as_stock


def replace(record: Patch, after: list[Placement]) -> None:
    """Put the placements `after` in the place of those that are in; if that fails, they are back."""
    before = record.placements
    if before:
        uninstall(record)
    try:
        if after:
            install(record, after)
    except BaseException:
        if before:
            install(record, before)
        raise


def install(record: Patch, placements: list[Placement]) -> None:
    """Put the placements in. An error leaves the model as `uninstall` does."""
    try:
        _install(record, placements)
    except BaseException:
        uninstall(record)
        raise


def _install(record: Patch, placements: list[Placement]) -> None:
    backbone, architecture = record.backbone, record.architecture
    if RECORD not in backbone.__dict__:
        own_config(record)
    record.placements = placements
    wants = {i: p.encoding if p.native else None for p in placements if not p.beside for i in p.layers}
    contents, alone = architecture.slot_contents(backbone, wants) if wants else ({}, [])
    config = stock_config(record, contents, alone)
    record.stock = config is not None
    setattr(backbone, RECORD, record)
    architecture.put(backbone, _slot(record, contents))
    if any(p.in_attention for p in placements):
        _write_masks(record)
    for placement in placements:
        _put_in(record, placement)
    for i in alone:
        _rotate_alone(record, i, wants[i])
    _hook_backbone(record)
    configure(record, config)
    _instruct(record)


def _slot(record: Patch, contents: dict[Group, PositionalEncoding | None]) -> nn.Module:
    """What goes into the native slot."""
    for placement in record.placements:
        if placement.table is not None:
            return _moved(placement.table, record.device, record.embedding.dtype)
    return record.architecture.holding(record.native, contents) if contents else record.native


def _put_in(record: Patch, placement: Placement) -> None:
    if not placement.in_table:
        record.backbone.add_module(placement.attribute, _moved(placement.encoding, record.home(placement)))
    if not placement.native and not placement.beside:
        for i in placement.layers:
            _keep_choosing(record, i)
    if placement.encoding.noted:
        first, hook = record.attentions[placement.layers[0]], NotedTokens(record.settled)
        record.handles.append(first.register_forward_pre_hook(record.architecture.seam.around(hook), with_kwargs=True))
    for i, projections in placement.projections.items():
        _infuse(record, placement, i, projections)
    if placement.in_attention:
        avoid, seam = avoided(placement.request.name, record.device), record.architecture.seam
        for i in placement.layers:
            attention = record.attentions[i]
            attention.posenc_site = EncodingSite(record.backbone, placement.attribute, record.settled, avoid)
            if placement.encoding.has("state") or (record.architecture.caches_keys and changes_keys(placement.encoding)):
                record.handles.append(attention.register_forward_pre_hook(seam.around(CachedKeys()), with_kwargs=True))
            record.handles += seam.hook(attention)


def _moved(module: Any, *where: Any) -> Any:
    """`module` in its place; what accelerate has offloaded is brought there at each call."""
    return module if any(parameter.is_meta for parameter in module.parameters()) else module.to(*where)


def _infuse(record: Patch, placement: Placement, layer: int, projections: Projections) -> None:
    """Put positions into what the queries and keys of `layer` are made of."""
    site = EncodingSite(record.backbone, placement.attribute, record.settled)
    for path, columns in projections.items():
        record.handles.append(InfusedProjection(record.attentions[layer], path, columns, site, record.architecture.seam.around))


def _write_masks(record: Patch) -> None:
    for attention in record.attentions.values():
        if record.architecture.reads_mask(attention):
            record.handles.append(attention.register_forward_pre_hook(ReadableMask(arguments_of(attention)), with_kwargs=True))


def _rotate_alone(record: Patch, layer: int, encoding: PositionalEncoding | None) -> None:
    """Serve one layer where its neighbours keep other frequencies."""
    attention, architecture, group = record.attentions[layer], record.architecture, record.group(layer)
    if encoding is not None:
        attention.add_module(ROTARY, architecture.holding_alone(record.native, group, encoding))
    hook = architecture.seam.around(architecture.layer_hook(architecture.rotary(record.native, group)[1], record.settled))
    record.handles.append(attention.register_forward_pre_hook(hook, with_kwargs=True))


def _keep_choosing(record: Patch, layer: int) -> None:
    """Leave the native rotation to what chooses the keys of `layer`, though it is taken from its attention."""
    architecture, group = record.architecture, record.group(layer)
    if (indexer := architecture.indexer_of(record.attentions[layer])) is not None:
        indexer.add_module(ROTARY, architecture.holding_alone(record.native, group, record.rotation(layer)))
        hook = PartRotation(arguments_of(indexer), architecture.rotary(record.native, group)[1], record.settled)
        record.handles.append(indexer.register_forward_pre_hook(hook, with_kwargs=True))


def _hook_backbone(record: Patch) -> None:
    alone = any(ROTARY in attention._modules for attention in record.attentions.values())
    if alone or any(not p.native or p.in_table for p in record.placements):
        names = arguments_of(record.backbone)
        follow = partial(change_backend, record) if any(p.in_attention for p in record.placements) else None
        takes_axes = hasattr(record.native, "mrope_section")
        hook = BackbonePositions(names, record.placements, record.settled, record.architecture.hand_down, follow, takes_axes)
        around = record.architecture.seam.around
        record.handles.append(record.backbone.register_forward_pre_hook(around(hook), with_kwargs=True))
        if infused := [handle for handle in record.handles if isinstance(handle, InfusedProjection)]:
            record.handles.append(record.backbone.register_forward_pre_hook(around(Followed(infused))))
        record.handles.append(record.backbone.register_forward_hook(around(Forget(record.settled)), always_call=True))
        if "position_ids" not in names and any(p.in_table for p in record.placements):
            looked_up = TablePositions(record.settled)
            record.handles.append(record.slot.register_forward_pre_hook(looked_up.before, with_kwargs=True))
            record.handles.append(record.slot.register_forward_hook(looked_up.after))
    record.handles.append(hook_documents(record.backbone))


def _instruct(record: Patch) -> None:
    """Let the models around the backbone save it as it is, and refuse what would bypass the attention function or makes no sense to it."""
    save_as_patched(record)
    names = [p.request.name for p in record.placements if p.in_attention]
    for model in record.holders if names or any(p.encoding.noted for p in record.placements) else ():
        if hasattr(model, "init_continuous_batching"):
            model.init_continuous_batching = no_continuous_batching
    if names and any(model.config is not record.backbone.config for model in record.holders):
        hook = NothingAhead(arguments_of(record.backbone), list(dict.fromkeys(names)))
        record.handles.append(record.backbone.register_forward_pre_hook(hook, with_kwargs=True))


def change_backend(record: Patch, backend: str) -> None:
    """Follow a user who sets another attention implementation on a patched model.

    Raises:
        ValueError: it cannot carry one of the placements.
    """
    check_backend(record, backend, record.placements)
    record.backbone.config._attn_implementation = record.architecture.seam.implementation(backend)


def extend_to(record: Patch, model: PreTrainedModel) -> Patch:
    """The same patch, seen from the model around a backbone that was patched on its own."""
    if model is not record.model and any(module is record.model for module in model.modules()):
        record.model = model
        share(record, model, record.backbone.config)
        _instruct(record)
    return record


def uninstall(record: Patch) -> None:
    """Put everything back; what was never done is skipped."""
    for handle in record.handles:
        handle.remove()
    record.handles.clear()
    Remember.take_out(record.backbone)
    for attention in record.attentions.values():
        attention.__dict__.pop("posenc_site", None)
        for module in attention.modules():
            module._modules.pop(ROTARY, None)
    for placement in record.placements:
        _take_out(record, placement)
    record.placements = []
    _restore_native(record)
    restore(record)
    save_as_stock(record)
    for model in record.holders:
        model.__dict__.pop("init_continuous_batching", None)
    record.backbone.__dict__.pop(RECORD, None)


def _take_out(record: Patch, placement: Placement) -> None:
    """Keep what the model really holds: it may have been trained, or wrapped (PEFT), since it was put in."""
    if placement.in_table and record.slot is not record.native:
        placement.table = record.slot
    held: Any = record.backbone._modules.pop(placement.attribute, placement.encoding)
    placement.encoding = held


def _restore_native(record: Patch) -> None:
    architecture = record.architecture
    if record.native_is_gone and not architecture.is_learned:
        record.native = architecture.fresh(record.native, record.native_config())
    if not any(p.is_meta for p in record.native.parameters()):
        record.native.to(record.device, None if architecture.rotates else record.embedding.dtype)
    record.architecture.put(record.backbone, record.native)
