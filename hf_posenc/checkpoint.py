"""Loading a checkpoint of a patched model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.auto.auto_factory import _get_model_class

from .architectures.base import RotarySlot
from .encodings import PositionalEncoding
from .live_config import live
from .patching import Request, apply, patch_of
from .patching.proof import prove
from .patching.record import requests_of
from .saved_config import PosencConfig


def load(auto: Any, path: str, *args: Any, config: PosencConfig, **kwargs: Any) -> Any:
    """What `auto.from_pretrained` returns for the base configuration, with the encodings in place before the weights arrive."""
    base = config.model_config()
    family: Any = type(base)
    base.__class__ = live(family)
    model_class = _get_model_class(base, auto._model_mapping)
    loaded = _patched_class(model_class, config).from_pretrained(path, *args, config=base, **kwargs)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    _finish(model, model_class)
    record = patch_of(model)
    prove(record, requests_of(record.placements))  # the model may have been saved with another version of transformers
    return loaded


def build(auto: Any, config: PosencConfig, **kwargs: Any) -> PreTrainedModel:
    """What `auto.from_config` returns for the base configuration, with the encodings in place."""
    base = config.model_config()
    model_class = _get_model_class(base, auto._model_mapping)
    model = _patched_class(model_class, config)._from_config(base, **kwargs)
    _finish(model, model_class)
    return model


def _patched_class(model_class: type[PreTrainedModel], config: PosencConfig) -> type[PreTrainedModel]:
    """A class for the time of loading only, whose instances are patched as soon as they are built."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        _repeat(self, config)

    return type(model_class.__name__, (model_class,), {"__init__": __init__, "__module__": model_class.__module__})


def _repeat(model: PreTrainedModel, config: PosencConfig) -> None:
    # transformers builds on the meta device; frequencies and slopes are numbers all the same.
    for entry in config.positional_encoding or []:
        with torch.device("cpu"):
            apply(patch_of(model), Request(entry["name"], entry["options"], tuple(entry["layers"])))


def _finish(model: PreTrainedModel, model_class: type[PreTrainedModel]) -> None:
    model.__class__ = model_class
    # Loading goes through the meta device, which leaves garbage in whatever is not in the checkpoint.
    for module in model.modules():
        if isinstance(module, PositionalEncoding):
            module.reset_buffers()
    for module in model.modules():
        if isinstance(module, RotarySlot):
            module.refresh_slot()
