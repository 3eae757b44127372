"""Putting an adapter of PEFT into a model that lacks the encoding which it was trained on."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from .extras import extra
from .patching import patch_of
from .patching.installing import replace
from .patching.reading import read
from .patching.record import Patch, written
from .patching.verbs import carry_out
from .saved_adapter import BaseEncoding


def learned_modules(model: nn.Module) -> list[str]:
    """Names of the modules that hold learned parameters of the encodings, as PEFT takes them: `LoraConfig(modules_to_save=...)`.

    Empty where there is nothing to learn.
    """
    return patch_of(model).learned


def put_in(model: nn.Module, peft_config: Any, adapter_name: str, **kwargs: Any) -> Any:
    """What the class of the adapter itself returns; the model has the encoding then.

    Args:
        peft_config: the configuration of the adapter, or {adapter_name: configuration}.
    """
    with extra("peft"):
        from peft import PEFT_TYPE_TO_TUNER_MAPPING

    config = peft_config[adapter_name] if isinstance(peft_config, dict) else peft_config
    return _encoding_first(PEFT_TYPE_TO_TUNER_MAPPING[config.posenc.adapter])(model, peft_config, adapter_name, **kwargs)


@functools.cache
def _encoding_first(family: Any) -> type:
    """A class like `family`, that of an adapter, and under its name, which looks after the encoding of whatever it is put into."""

    def inject_adapter(self: Any, model: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = self.peft_config[adapter_name]
        if hasattr(config, "posenc"):
            restore(patch_of(model), config.posenc, alone=len(self.peft_config) == 1)
            config.peft_type = config.posenc.adapter
        family.inject_adapter(self, model, adapter_name, *args, **kwargs)

    return type(family.__name__, (family,), {"inject_adapter": inject_adapter, "__module__": family.__module__})


def restore(record: Patch, wanted: BaseEncoding, alone: bool) -> None:
    """Give a stock model the encoding that an adapter was trained on, with what it has learned.

    Args:
        alone: no other adapter is in the model; if there is one, the encoding must be there already.

    Raises:
        ValueError: the model has another encoding. It is as it was then.
    """
    before = record.placements
    if not before and alone:
        carry_out(record, read(record, wanted.requests))
    elif written(before) != wanted.requests:
        raise ValueError(
            f"the adapter was trained on {_named(wanted.requests)}, and this model has {_named(written(before))}: load it on a stock base"
        )
    try:
        _restore_parameters(record.parameters, wanted.parameters, alone)
    except ValueError:
        replace(record, before)
        raise


def _restore_parameters(live: dict[str, torch.Tensor], saved: dict[str, torch.Tensor] | None, alone: bool) -> None:
    if live and saved is None:
        raise ValueError(
            "this encoding has parameters, which lie in the folder of the adapter: load it with PeftModel.from_pretrained(base, folder) "
            "or AutoPeftModelForCausalLM.from_pretrained(folder), and without config="
        )
    saved = saved or {}
    if {name: value.shape for name, value in live.items()} != {name: value.shape for name, value in saved.items()}:
        raise ValueError("the parameters of the encoding that lie with the adapter are not those of this model: it is not its base")
    if any(value.is_meta for value in live.values()):
        raise ValueError("an encoding has no numbers with low_cpu_mem_usage=True: leave that out")
    if not alone and any(not torch.equal(value, saved[name].to(value)) for name, value in live.items()):
        raise ValueError("the adapter was trained on an encoding with other parameters than those of this model: load it on a stock base")
    with torch.no_grad():
        for name, value in live.items():
            value.copy_(saved[name])


def _named(requests: list[dict[str, Any]]) -> str:
    return " and ".join(repr(request.get("name")) for request in requests) or "its own positional encoding"
