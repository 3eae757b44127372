"""The configuration of an adapter whose base needs an encoding that transformers does not give it.

It is registered while PEFT is half imported, so PEFT is imported where it is used.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .extras import extra
from .saved_config import FORMAT, check_format

PARAMETERS = "positional_encoding.safetensors"
"""In the folder of an adapter: the parameters of the encodings of its base."""


class AdapterType(enum.StrEnum):
    """What PEFT reads in the place of the type of an adapter. Without this package it knows no such type, and says so in these words."""

    HF_POSENC = "HF_POSENC (an adapter on a positional encoding of the package hf_posenc: `import hf_posenc` first)"


@dataclass
class BaseEncoding:
    """What the base of an adapter must have: the encodings, as a checkpoint says them, and what they have learned.

    Args:
        adapter: the type of the adapter.
        parameters: by name; None where PEFT did not say from which folder it reads.
    """

    adapter: str
    requests: list[dict[str, Any]]
    parameters: dict[str, torch.Tensor] | None = None

    def save(self, folder: Path) -> None:
        """Write the parameters, if there are any."""
        if self.parameters:
            save_file({name: value.detach().cpu().contiguous() for name, value in self.parameters.items()}, folder / PARAMETERS)


class AdapterConfig:
    """Stands in PEFT's registry of configurations, and makes those of other types of adapters, which know the encoding of their base."""

    def __new__(cls, base_peft_type: str, positional_encoding: list[dict[str, Any]], posenc_format: int, **entries: Any) -> Any:
        """The configuration of the adapter itself.

        Args:
            base_peft_type: the type of the adapter. positional_encoding: what its base must have. posenc_format: the form of that.
            entries: its own.
        """
        check_format(posenc_format)
        with extra("peft"):
            from peft import PeftConfig

        config = PeftConfig.from_peft_type(**entries | {"peft_type": base_peft_type})
        carry(config, BaseEncoding(config.peft_type, positional_encoding))
        config.peft_type = AdapterType.HF_POSENC  # until the base has the encoding
        return config

    @classmethod
    def from_pretrained(cls, path: Any, subfolder: str | None = None, **kwargs: Any) -> Any:
        """As that of PEFT, with the parameters that lie beside the configuration."""
        with extra("peft"):
            from peft import PeftConfig
        from transformers.utils import cached_file

        config: Any = PeftConfig.from_pretrained(path, subfolder=subfolder, **kwargs)
        hub = {name: kwargs[name] for name in ("revision", "cache_dir", "token") if kwargs.get(name) is not None}
        file = cached_file(path, PARAMETERS, subfolder=subfolder or "", _raise_exceptions_for_missing_entries=False, **hub)
        config.posenc.parameters = load_file(file) if file else {}
        return config


def carry(config: Any, encoding: BaseEncoding) -> None:
    """Let the configuration of an adapter say what its base has, in this instance alone."""
    family: Any = type(config)
    config.__class__ = carrying(getattr(family, "posenc_family", family))
    config.posenc = encoding


def drop(config: Any) -> None:
    """Undo `carry`; a configuration that carries nothing is left alone."""
    if family := getattr(config, "posenc_family", None):
        config.__class__ = family
        del config.posenc


@functools.cache
def carrying(family: Any) -> type:
    """A class like `family`, the class of a configuration of PEFT, and under its name, which saves what `carry` has told it."""
    members = {
        "posenc_family": family,
        "to_dict": _to_dict,
        "save_pretrained": _save_pretrained,
        "__reduce__": _reduce,
        "__module__": family.__module__,
        "__qualname__": family.__qualname__,
    }
    return type(family.__name__, (family,), members)


def _to_dict(self: Any) -> dict[str, Any]:
    own = {"base_peft_type": self.posenc.adapter, "positional_encoding": self.posenc.requests, "posenc_format": FORMAT}
    return self.posenc_family.to_dict(self) | {"peft_type": AdapterType.HF_POSENC} | own


def _save_pretrained(self: Any, save_directory: str, **kwargs: Any) -> None:
    self.posenc_family.save_pretrained(self, save_directory, **kwargs)
    self.posenc.save(Path(save_directory))


def _reduce(self: Any) -> tuple:
    return _rebuilt, (self.posenc_family, self.__dict__)


def _rebuilt(family: Any, entries: dict[str, Any]) -> Any:
    config: Any = object.__new__(carrying(family))
    config.__dict__.update(entries)
    return config
