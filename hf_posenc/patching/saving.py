"""Saving a patched model.

Where transformers knows the scheme, the saved checkpoint is a stock one and nothing here is involved. Elsewhere the checkpoint gets a
model type of its own, which holds the configuration of the model and the encodings, and which everything but this package refuses.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel

from .record import Patch, requests_of

NOTICE = "this checkpoint has a positional encoding of the package hf_posenc: `import hf_posenc`, then use AutoModelForCausalLM"
OF_ANY_MODEL = ("return_unused_kwargs", "attn_implementation", "experts_implementation", "dtype", "torch_dtype", "name_or_path")
"""Options of `from_pretrained` about a configuration as such; the others mean the configuration of the model."""


class PosencConfig(PretrainedConfig):
    """Configuration of a checkpoint that transformers alone must not load.

    Args:
        base_model_type: model type of the model.
        base_config: its configuration, as before any patch. It names no model type of its own: model classes look for
            theirs in nested configurations, and would load what they find.
        positional_encoding: the requests to repeat on it, each with name, options and layers.
        vocab_size: a notice where every model class wants a number, so that none of them loads a wrong model.
    """

    model_type = "hf_posenc"
    base_model_type: str = ""
    base_config: dict[str, Any] | None = None
    positional_encoding: list[dict[str, Any]] | None = None
    vocab_size: int | str = NOTICE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; what the caller overrides (`num_labels`, `use_cache` ...) is overridden in the model's configuration."""
        if config_dict.get("base_config") and config_dict.get("base_model_type"):
            own = {k: kwargs.pop(k) for k in OF_ANY_MODEL if k in kwargs}
            base_class = CONFIG_MAPPING[config_dict["base_model_type"]]
            base, unused = base_class.from_dict(dict(config_dict["base_config"]), return_unused_kwargs=True, **kwargs)
            entries = {k: v for k, v in base.to_dict().items() if k != "model_type"}
            config_dict, kwargs = config_dict | {"base_config": entries}, own | unused
        return super().from_dict(config_dict, **kwargs)

    def model_config(self) -> PretrainedConfig:
        """The configuration of the model itself."""
        if not self.base_config or not self.positional_encoding:
            raise ValueError("the checkpoint names no base_config or no positional_encoding; its config.json is damaged")
        config = AutoConfig.for_model(self.base_model_type, **self.base_config)
        config._attn_implementation = self._attn_implementation
        config._experts_implementation = self._experts_implementation
        config.dtype = self.dtype
        return config


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
    base = patch.native_config()
    base.architectures = [type(model).__name__]
    requests = [dataclasses.asdict(request) for request in requests_of(patch.placements)]
    entries = base.to_dict()
    return PosencConfig(base_model_type=entries.pop("model_type"), base_config=entries, positional_encoding=requests)


def save_as_patched(record: Patch) -> None:
    """Let `save_pretrained` say what the model is, unless transformers can be told."""
    if record.placements and not record.stock:
        model: Any
        for model in (record.model, record.model.base_model):
            model.save_pretrained = SavePretrained(record, model)
