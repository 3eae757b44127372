"""Saving a patched model.

Where transformers knows the scheme, the saved checkpoint is a stock one and nothing here is involved. Elsewhere the checkpoint gets a
model type of its own, which holds the configuration of the model and the encodings, and which everything but this package refuses.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from transformers import PreTrainedModel

from ..saved_config import NOTICE, PosencConfig
from .configuration import with_part
from .record import Patch, requests_of


class SavePretrained:
    """`save_pretrained` of a patched model, or of the backbone in it: that of its class, under a configuration that says what it is."""

    def __init__(self, patch: Patch, model: PreTrainedModel):
        self.patch, self.model = patch, model

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
    base.architectures = [type(model).__name__]
    requests = [dataclasses.asdict(request) for request in requests_of(patch.placements)]
    entries = base.to_dict()
    kind = entries.pop("model_type")
    notices: dict[str, Any] = dict.fromkeys(base.sub_configs, NOTICE)
    return PosencConfig(base_model_type=kind, base_config=entries, positional_encoding=requests, **notices)


def save_as_patched(record: Patch) -> None:
    """Let `save_pretrained` say what the model is, unless transformers can be told."""
    if record.placements and not record.stock:
        model: Any
        for model in record.holders:
            model.save_pretrained = SavePretrained(record, model)
