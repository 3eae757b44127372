"""Loading a checkpoint of a patched model."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.auto_factory import _get_model_class

from .architectures.slots import RotarySlot
from .encodings import PositionalEncoding
from .live_config import live
from .patching import apply, patch_of
from .patching.backends import check_backend
from .patching.proof import prove
from .patching.reading import read
from .patching.record import requests_of
from .saved_config import PosencConfig


def load(auto: Any, path: str, *args: Any, config: PosencConfig, **kwargs: Any) -> Any:
    """What `auto.from_pretrained` returns for the base configuration, with the encodings in place before the weights arrive."""
    base, model_class = _stock(auto, config, path, bool(kwargs.get("trust_remote_code")))
    family: Any = type(base)
    base.__class__ = live(family)
    loaded = _patched_class(model_class, config).from_pretrained(path, *args, config=base, **kwargs)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    _finish(model, model_class)
    record = patch_of(model)
    check_backend(record, record.live_backend, record.placements)  # its heads may have been shared out since they were patched
    prove(record, requests_of(record.placements))  # the model may have been saved with another version of transformers
    return loaded


def build(auto: Any, config: PosencConfig, **kwargs: Any) -> PreTrainedModel:
    """What `auto.from_config` returns for the base configuration, with the encodings in place."""
    base, model_class = _stock(auto, config, config.name_or_path, bool(kwargs.pop("trust_remote_code", False)))
    model = _patched_class(model_class, config)._from_config(base, **kwargs)
    _finish(model, model_class)
    return model


def _stock(auto: Any, config: PosencConfig, path: str | None, trust_remote_code: bool) -> tuple[PretrainedConfig, type[PreTrainedModel]]:
    """The configuration and the class of the model before any patch; custom code lies where the checkpoint does.

    Raises:
        ValueError: custom code is not trusted, or is not there.
    """
    if config.base_model_type in CONFIG_MAPPING:
        return _model_class(auto, config.model_config())
    code = (config.base_config or {}).get("auto_map", {})
    if "AutoConfig" not in code or auto.__name__ not in code:
        raise ValueError(f"model type {config.base_model_type!r} is unknown to transformers, and the checkpoint names no code for it")
    if not trust_remote_code:
        raise ValueError(f"the checkpoint brings code of its own for {config.base_model_type!r}; trust_remote_code=True runs it")
    family, model_class = (cast(Any, get_class_from_dynamic_module(code[name], cast(str, path))) for name in ("AutoConfig", auto.__name__))
    model_class.register_for_auto_class(auto.__name__)  # so that it is saved with its code again
    return config.model_config(family), model_class


def _model_class(auto: Any, base: PretrainedConfig) -> tuple[PretrainedConfig, type[PreTrainedModel]]:
    """The class that `auto` has for a model with this configuration, and the configuration or the part of it which that takes."""
    if type(base) not in auto._model_mapping:
        raise ValueError(f"this checkpoint of hf_posenc holds a {base.model_type} model, for which {auto.__name__} has no class")
    model_class = _get_model_class(base, auto._model_mapping)
    return (base if isinstance(base, model_class.config_class) else base.get_text_config(decoder=True)), model_class


def _patched_class(model_class: type[PreTrainedModel], config: PosencConfig) -> type[PreTrainedModel]:
    """A class for the time of loading only, whose instances are patched as soon as they are built."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        _repeat(self, config)

    return type(model_class.__name__, (model_class,), {"__init__": __init__, "__module__": model_class.__module__})


def _repeat(model: PreTrainedModel, config: PosencConfig) -> None:
    # transformers builds on the meta device; frequencies and slopes are numbers all the same.
    with torch.device("cpu"):
        record = patch_of(model)
        apply(record, *read(record, config.positional_encoding or []))


def _finish(model: PreTrainedModel, model_class: type[PreTrainedModel]) -> None:
    model.__class__ = model_class
    # Loading goes through the meta device, which leaves garbage in whatever is not in the checkpoint.
    for module in model.modules():
        if isinstance(module, PositionalEncoding):
            module.reset_buffers()
    for module in model.modules():
        if isinstance(module, RotarySlot):
            module.refresh_slot()
