"""What the configuration of a patched model says."""

from __future__ import annotations

import copy
from typing import Any, cast

from transformers import PretrainedConfig, PreTrainedModel

from ..architectures.slots import Group
from ..encodings import PositionalEncoding
from ..live_config import live
from .record import Patch


def own_config(record: Patch) -> None:
    """Give the backbone a configuration of its own: models that were built from one configuration share it."""
    record.shared = record.backbone.config
    share(record, record.model, alive(copy.deepcopy(record.shared)))


def share(record: Patch, model: PreTrainedModel, own: PretrainedConfig) -> None:
    """Let the modules of `model` say `own` where they said what the backbone shared with other models.

    Configurations around it are copied as far as they lead there. What a decoder shares with the encoder beside it stays the encoder's.
    """
    known = {id(record.shared): own}
    for module, config in configs_in(record.backbone if record.beside_encoder else model).items():
        module.config = _with(config, known)


def configs_in(model: PreTrainedModel) -> dict[Any, PretrainedConfig]:
    """The modules that have a configuration, each with its own."""
    found = {module: module.__dict__.get("config") for module in model.modules()}
    return {module: config for module, config in found.items() if isinstance(config, PretrainedConfig)}


def written(config: PretrainedConfig) -> str:
    """What a configuration says of the model, without what it says of a checkpoint."""
    aside = ("_name_or_path", "architectures", "dtype", "id2label", "label2id", "transformers_version")
    return repr(sorted((name, repr(value)) for name, value in config.to_dict().items() if name not in aside))


def with_part(config: PretrainedConfig, part: PretrainedConfig, new: PretrainedConfig) -> PretrainedConfig:
    """`config` with `new` where it has `part`: another object if it has it anywhere."""
    return _with(config, {id(part): new})


def _with(config: PretrainedConfig, known: dict[int, PretrainedConfig]) -> PretrainedConfig:
    if id(config) not in known:
        parts = {name: part for name, part in vars(config).items() if isinstance(part, PretrainedConfig)}
        changed = {name: new for name, part in parts.items() if (new := _with(part, known)) is not part}
        known[id(config)] = alive(copy.copy(config)) if changed else config
        vars(known[id(config)]).update(changed)
    return known[id(config)]


def alive(config: PretrainedConfig) -> PretrainedConfig:
    """`config`, which is ours, as one that lives in a patched model."""
    family = cast(Any, type(config))
    config.__class__ = live(family)
    return config


def stock_config(record: Patch, contents: dict[Group, PositionalEncoding | None], alone: list[int]) -> PretrainedConfig | None:
    """The configuration that says all of the placements to transformers, where there is one.

    Args:
        contents, alone: as `Architecture.slot_contents` sorts them.
    """
    if alone or not contents or not all(p.native for p in record.placements) or record.beside_encoder:
        return None  # and where an encoder shares the configuration, it would be told too
    config = record.native_config()
    for name, value in record.said_length.items():
        setattr(config, name, value)
    return record.architecture.stock_config(record.native, config, contents)


def configure(record: Patch, stock: PretrainedConfig | None) -> None:
    """Write into the live configuration what the placements change, and remember what it was."""
    changes: dict[str, Any] = {}
    if stock is not None and hasattr(stock, "rope_parameters"):
        changes["rope_parameters"] = stock.rope_parameters
    changes |= record.said_length
    if any(p.in_attention for p in record.placements):
        changes["_attn_implementation"] = record.architecture.seam.implementation(record.live_backend)
    for name, value in changes.items():
        record.config_before[name] = copy.deepcopy(getattr(record.backbone.config, name))
        setattr(record.backbone.config, name, value)


def restore(record: Patch) -> None:
    """The configuration as it was, but for the attention backend: that is the user's latest choice."""
    if "_attn_implementation" in record.config_before:
        record.config_before["_attn_implementation"] = record.live_backend
    for name, value in record.config_before.items():
        setattr(record.backbone.config, name, value)
    record.config_before.clear()
    for config in configs_in(record.model).values():
        stock: Any = getattr(config, "posenc_family", type(config))
        config.__class__ = stock
