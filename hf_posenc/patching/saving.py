"""Saving a patched model.

Where transformers knows the scheme, the saved checkpoint is a stock one and nothing here is involved. Elsewhere the checkpoint gets a
model type of its own, which holds the configuration of the model and the encodings, and which everything but this package refuses; so does
an adapter of PEFT.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from ..saved_adapter import BaseEncoding, carry, drop
from ..saved_config import FORMAT, NOTICE, PosencConfig
from .configuration import with_part
from .record import Patch, written


class SavePretrained:
    """`save_pretrained` of a patched model, or of the backbone in it: that of its class, under a configuration that says what it is.

    Attributes:
        tags: for model cards, of the hub, Trainer and PEFT; the one thing that a model can let them say.
    """

    def __init__(self, patch: Patch, model: PreTrainedModel):
        self.patch, self.model = patch, model
        self.tags = [PosencConfig.model_type, *dict.fromkeys(placement.request.name for placement in patch.placements)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model = self.model
        live = model.config
        model.config = saved_config(self.patch, model)
        try:
            return type(model).save_pretrained(model, *args, **kwargs)
        finally:
            model.config = live


def saved_config(patch: Patch, model: PreTrainedModel) -> PosencConfig:
    """The configuration that a patched model, or the backbone in it, is saved with."""
    base = copy.copy(with_part(model.config, patch.backbone.config, patch.native_config()))
    base.architectures = [type(model).__name__.removeprefix("FSDP")]
    entries = base.to_dict()
    kind = entries.pop("model_type")
    # In full: up to transformers 5.3 what is a default is not saved.
    said: dict[str, Any] = {"posenc_format": FORMAT, **dict.fromkeys(("vocab_size", *base.sub_configs), NOTICE)}
    return PosencConfig(base_model_type=kind, base_config=entries, positional_encoding=written(patch.placements), **said)


class TellAdapters:
    """Before weights are collected to be saved: lets the configurations of PEFT's adapters say what the base has.

    What FSDP2 has cut up is put together, by all processes: each of them collects weights then.
    """

    def __init__(self, patch: Patch):
        self.patch = patch

    def __call__(self, *_: Any) -> None:
        for config in adapters_of(self.patch):
            adapter = config.posenc.adapter if hasattr(config, "posenc") else config.peft_type
            whole = {name: _whole(value) for name, value in self.patch.parameters.items()}
            carry(config, BaseEncoding(adapter, written(self.patch.placements), whole))


def _whole(value: Any) -> torch.Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def adapters_of(record: Patch) -> list[Any]:
    """The configurations of the adapters that PEFT has put into the model."""
    return [config for model in record.holders for config in getattr(model, "peft_config", {}).values()]


def save_as_patched(record: Patch) -> None:
    """Let `save_pretrained` say what the model is, unless transformers can be told; an adapter says it in any case."""
    if not record.placements:
        return
    record.handles.append(record.backbone.register_state_dict_pre_hook(TellAdapters(record)))
    model: Any
    for model in record.holders if not record.stock else ():
        model.save_pretrained = SavePretrained(record, model)
        model.model_tags = [*(model.model_tags or []), *model.save_pretrained.tags]


def save_as_stock(record: Patch) -> None:
    """Undo `save_as_patched`, but for the hooks."""
    for model in record.holders:
        if (saving := model.__dict__.pop("save_pretrained", None)) is not None:
            kept = [tag for tag in model.__dict__.pop("model_tags", None) or () if tag not in saving.tags]
            if kept:
                model.model_tags = kept
    for config in adapters_of(record):
        drop(config)
