"""What the configuration of a patched model says."""

from __future__ import annotations

import copy
from typing import Any, cast

from transformers import PretrainedConfig, PreTrainedModel

from ..architectures.base import Group
from ..attention.entry import PREFIX
from ..encodings import PositionalEncoding
from ..live_config import live
from .record import Patch


def own_config(model: PreTrainedModel, shared: PretrainedConfig) -> None:
    """Give `model` a configuration of its own: models that were built from one configuration share it."""
    own, family = copy.deepcopy(shared), cast(Any, type(shared))
    own.__class__ = live(family)
    module: Any
    for module in model.modules():
        if module.__dict__.get("config") is shared:
            module.config = own


def stock_config(record: Patch, contents: dict[Group, PositionalEncoding | None], alone: list[int]) -> PretrainedConfig | None:
    """The configuration that says all of the placements to transformers, where there is one.

    Args:
        contents, alone: as `Architecture.slot_contents` sorts them.
    """
    if alone or not contents or not all(p.native for p in record.placements):
        return None
    config = record.native_config()
    if record.context_length:
        config.max_position_embeddings = record.context_length
    return record.architecture.stock_config(record.native, config, contents)


def configure(record: Patch, stock: PretrainedConfig | None) -> None:
    """Write into the live configuration what the placements change, and remember what it was."""
    changes: dict[str, Any] = {}
    if stock is not None and hasattr(stock, "rope_parameters"):
        changes["rope_parameters"] = stock.rope_parameters
    if record.context_length:
        changes["max_position_embeddings"] = record.context_length
    if any(p.in_attention for p in record.placements):
        changes["_attn_implementation"] = PREFIX + record.live_backend
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
    record.backbone.config.__class__ = record.config_class
