"""The class of the configuration of a patched model: that of its family, but for two questions which only this package can answer."""

from __future__ import annotations

import functools
from typing import Any

from transformers import PretrainedConfig

from .attention.entry import PREFIX
from .saved_config import PosencConfig


@functools.cache
def live(family: Any) -> type[PretrainedConfig]:
    """A class like `family`, the class of a configuration, and under its name. The class that transformers has stays as it is."""
    if getattr(family, "posenc_family", None):
        return family
    members = {
        "posenc_family": family,
        "from_pretrained": classmethod(_from_pretrained),
        "output_attentions": property(family.output_attentions.fget, _set_output_attentions),
        "__reduce__": _reduce,
        "__module__": family.__module__,
        "__qualname__": family.__qualname__,
    }
    return type(family.__name__, (family,), members)


def _from_pretrained(cls: Any, path: Any, **kwargs: Any) -> PretrainedConfig:
    """Reads our checkpoints too: PEFT asks the class of a live configuration about the base of an adapter.

    The class of the family must go on refusing them: a model class would build a stock model from what it reads.
    """
    entries, _ = PretrainedConfig.get_config_dict(path, **kwargs)
    if entries.get("model_type") != PosencConfig.model_type:
        return cls.posenc_family.from_pretrained(path, **kwargs)
    return PosencConfig.from_dict(entries, **kwargs | {"return_unused_kwargs": False}).model_config()


def _set_output_attentions(self: Any, value: bool) -> None:
    """As in the family, which allows it with eager attention alone, and does not know ours for that."""
    implementation = self._attn_implementation or ""
    self._attn_implementation = implementation.removeprefix(PREFIX) or None
    try:
        self.posenc_family.output_attentions.fset(self, value)
    finally:
        self._attn_implementation = implementation or self._attn_implementation


def _reduce(self: Any) -> tuple:
    return _rebuilt, (self.posenc_family, self.__dict__)


def _rebuilt(family: Any, entries: dict[str, Any]) -> PretrainedConfig:
    config = live(family).__new__(live(family))
    config.__dict__.update(entries)
    return config
