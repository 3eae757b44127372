"""The configuration of a checkpoint that has an encoding which transformers does not know.

It is registered while transformers is half imported, so the Auto classes are imported where they are used.
"""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PretrainedConfig

NOTICE = "this checkpoint has a positional encoding of the package hf_posenc: `import hf_posenc`, then use the Auto class of the model"
FORMAT = 1
"""Of what is written into files: a later one is for a later version of this package."""
OF_ANY_MODEL = ("return_unused_kwargs", "attn_implementation", "experts_implementation", "dtype", "torch_dtype", "name_or_path")
"""Options of `from_pretrained` about a configuration as such; the others mean the configuration of the model."""


def check_format(found: Any) -> None:
    """Raise ValueError for a form that this version does not read."""
    if type(found) is not int or not 1 <= found <= FORMAT:
        raise ValueError(f"this was written by a newer hf_posenc (format {found!r}; this one reads {FORMAT}): pip install -U hf_posenc")


def _auto_classes(base_class: type[PretrainedConfig], architectures: list[str] | None) -> list[str] | None:
    """The Auto class, by name, in the place of a model class that must not load the checkpoint: some tools load by what is said there."""
    from transformers.models.auto import modeling_auto

    for name, auto in reversed(list(vars(modeling_auto).items())):
        found = getattr(auto, "_model_mapping", {}).get(base_class, ()) if name.startswith("AutoModel") else ()
        if {each.__name__ for each in (found if isinstance(found, tuple) else (found,))} & set(architectures or ()):
            return [name]
    return architectures


class PosencConfig(PretrainedConfig):
    """Configuration of a checkpoint that transformers alone must not load.

    Args:
        base_model_type: model type of the model.
        base_config: its configuration, as before any patch. It names no model type of its own: model classes look for
            theirs in nested configurations, and would load what they find.
        positional_encoding: the requests to repeat on it, each with name, options and layers.
        posenc_format: the form of these entries.
        vocab_size: a notice where every model class wants a number, so that none of them loads a wrong model; those around a decoder
            find it where they want a configuration.
    """

    model_type = "hf_posenc"
    base_model_type: str = ""
    base_config: dict[str, Any] | None = None
    positional_encoding: list[dict[str, Any]] | None = None
    posenc_format: int = FORMAT
    vocab_size: int | str = NOTICE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; what the caller overrides (`num_labels`, `use_cache` ...) is overridden in the model's configuration."""
        from transformers import CONFIG_MAPPING

        check_format(config_dict.get("posenc_format", FORMAT))
        if config_dict.get("base_config") and config_dict.get("base_model_type") in CONFIG_MAPPING:
            own = {k: kwargs.pop(k) for k in OF_ANY_MODEL if k in kwargs}
            base_class = CONFIG_MAPPING[config_dict["base_model_type"]]
            base, unused = base_class.from_dict(dict(config_dict["base_config"]), return_unused_kwargs=True, **kwargs)
            entries = {k: v for k, v in base.to_dict().items() if k != "model_type"}
            loaded_by = _auto_classes(base_class, config_dict.get("architectures"))
            config_dict, kwargs = config_dict | {"base_config": entries, "architectures": loaded_by}, own | unused
        return super().from_dict(config_dict, **kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """Itself: what would be the text's is a notice."""
        return self

    def model_config(self, family: type[PretrainedConfig] | None = None) -> PretrainedConfig:
        """The configuration of the model itself, of the class `family` where the model type is not one of transformers."""
        from transformers import CONFIG_MAPPING

        if not self.base_config or not self.positional_encoding:
            raise ValueError("the checkpoint names no base_config or no positional_encoding; its config.json is damaged")
        config = (family or CONFIG_MAPPING[self.base_model_type])(**self.base_config)
        config._attn_implementation = self._attn_implementation
        config._experts_implementation = self._experts_implementation
        config.dtype = self.dtype
        return config
