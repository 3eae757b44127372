"""Loading a checkpoint of a patched model: the Auto classes find `PosencConfig` in their registries once `hf_posenc` is imported."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _get_model_class

from .architectures.base import RotarySlot
from .encodings import PositionalEncoding
from .patching import Request, apply, patch_of
from .patching.proof import prove
from .patching.record import requests_of
from .patching.saving import PosencConfig

AUTO_CLASSES = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForTokenClassification")


class Loader:
    """Stands in the registry of one Auto class, and builds that Auto class's model for the base configuration."""

    auto: Any

    @classmethod
    def from_pretrained(cls, path: str, *args: Any, config: PosencConfig, **kwargs: Any) -> Any:
        """Load as the model's own class does, with the encodings in place before the weights arrive."""
        base = config.model_config()
        model_class = _get_model_class(base, cls.auto._model_mapping)
        loaded = _patched_class(model_class, config).from_pretrained(path, *args, config=base, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        _finish(model, model_class)
        record = patch_of(model)
        prove(record, requests_of(record.placements))  # this may be another version of transformers than the one it was saved with
        return loaded

    @classmethod
    def _from_config(cls, config: PosencConfig, **kwargs: Any) -> PreTrainedModel:
        base = config.model_config()
        model_class = _get_model_class(base, cls.auto._model_mapping)
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


def register_auto_classes() -> None:
    """Make the Auto classes of transformers know checkpoints of patched models."""
    AutoConfig.register(PosencConfig.model_type, PosencConfig)
    for name in AUTO_CLASSES:
        auto = getattr(transformers, name)
        auto.register(PosencConfig, type(f"{name}Loader", (Loader,), {"auto": auto}))
