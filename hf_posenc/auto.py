"""Letting the Auto classes of transformers know checkpoints of patched models, and PEFT the adapters on them.

The functions run while transformers or PEFT is half imported, so what they need of it is only what they are given and what lies below that.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

from .saved_adapter import AdapterConfig, AdapterType
from .saved_config import PosencConfig


class Adapter:
    """Stands in PEFT's registry of adapters, and puts one of another type into a model, which first gets its encoding."""

    uses_shared_state = False

    def __new__(cls, model: Any, peft_config: Any, adapter_name: str, **kwargs: Any) -> Any:
        """As the class of the adapter itself."""
        from .adapter import put_in

        return put_in(model, peft_config, adapter_name, **kwargs)


class Loader:
    """Stands in the registry of one Auto class, and builds that Auto class's model for the base configuration."""

    auto: Any
    config_class = PosencConfig

    @classmethod
    def from_pretrained(cls, path: str, *args: Any, config: PosencConfig, **kwargs: Any) -> Any:
        """Load as the model's own class does, with the encodings in place before the weights arrive."""
        from .checkpoint import load

        return load(cls.auto, path, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: PosencConfig, **kwargs: Any) -> Any:
        from .checkpoint import build

        return build(cls.auto, config, **kwargs)


def register_configuration(configuration_auto: Any) -> None:
    """Register with `AutoConfig`; takes the module that defines it."""
    configuration_auto.AutoConfig.register(PosencConfig.model_type, PosencConfig, exist_ok=True)


def register_loaders(modeling_auto: Any) -> None:
    """Register with the Auto classes of models; takes the module that defines them."""
    for name, auto in list(vars(modeling_auto).items()):
        if inspect.isclass(auto) and getattr(auto, "_model_mapping", None) is not None:
            cast(Any, auto).register(PosencConfig, type(f"{name}Loader", (Loader,), {"auto": auto}), exist_ok=True)


def register_adapters(mapping: Any) -> None:
    """Register with PEFT; takes the module that has its registries."""
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[AdapterType.HF_POSENC] = AdapterConfig
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[AdapterType.HF_POSENC] = Adapter
