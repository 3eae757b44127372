"""What a user names, as a configuration, and the model of that configuration without numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from ..evaluation.demo_model import resolve_model
from ..patching import Patch
from ..patching.configuration import with_part
from ..patching.installing import uninstall
from ..patching.record import RECORD
from ..patching.twin import sharpen, small
from ..saved_config import PosencConfig
from .faults import Fault, of_scaling, one_line
from .found import ranges
from .model_types import cut, default_config, is_model_type

LLAMA_LIKE: dict[str, Any] = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 1}
"""The attention of Llama 3 8B, where no model is named."""
BESIDE_ENCODER = ("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq")
AUTO_NAMES = (*BESIDE_ENCODER, "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
AUTO: list[Any] = [getattr(transformers, name) for name in AUTO_NAMES if hasattr(transformers, name)]
"""Auto classes of models with a decoder of text that this transformers has: those with an encoder beside it first."""
ADAPTER = "adapter_config.json"


class Ill(Exception):
    """Nothing can be examined; `fault` says why not."""

    def __init__(self, fault: Fault):
        super().__init__(fault.what)
        self.fault = fault


class Source:
    """A configuration, and how a user came to it.

    Attributes:
        config: of the stock model. live: patches of hf_posenc that the checkpoint has. faults: found on the way.

    Raises:
        Ill: it cannot be read. OSError: there is nothing of that name.
    """

    def __init__(self, name: str | None, trust_remote_code: bool = False):
        self.trust, self.faults, self.live = trust_remote_code, list[Fault](), list[str]()
        if name is None:
            self.config: PretrainedConfig = AutoConfig.for_model("llama", **LLAMA_LIKE)
        elif is_model_type(name) and not Path(name).exists():
            self.config = default_config(name)
        else:
            self.config = self._read(self._around_adapter(resolve_model(name)))
        if isinstance(self.config, PosencConfig):
            self.live = encodings_in({"positional_encoding": self.config.positional_encoding})
            self.config = self._base(self.config)
        self.faults += of_scaling(self.config.get_text_config(decoder=True))

    def _around_adapter(self, path: str) -> str:
        """The base model of a folder that holds an adapter alone."""
        folder = Path(path)
        if not (folder / ADAPTER).is_file() or (folder / "config.json").is_file():
            return path
        said = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        base, self.live = said.get("base_model_name_or_path"), encodings_in(said)
        if not base:
            advice = "name the folder of the base model"
            raise Ill(Fault(ADAPTER, "the adapter does not say what it was trained on", advice))
        advice = "load the adapter on that model as it is: an encoding that it was trained with comes with it"
        self.faults.append(Fault(path, f"this is a PEFT adapter: what is examined is its base model, {base}", advice, grave=False))
        return resolve_model(base)

    def _read(self, path: str) -> PretrainedConfig:
        said, _ = PretrainedConfig.get_config_dict(path)
        try:
            return AutoConfig.from_pretrained(path, trust_remote_code=self.trust)
        except Exception as error:  # transformers checks the rotary parameters while it reads
            raise Ill(unreadable(said, self.trust, error)) from error

    def _base(self, saved: PosencConfig) -> PretrainedConfig:
        try:
            return saved.model_config()
        except (KeyError, ValueError) as error:
            advice = "load it with AutoModelForCausalLM and trust_remote_code=True, and call hf_posenc.diagnose(model)"
            raise Ill(
                Fault("configuration", f"the model that hf_posenc has saved here cannot be built: {one_line(error)}", advice)
            ) from error

    def skeleton(self, attn_implementation: str | None = None) -> Any:
        """The model of the configuration, without numbers.

        Raises:
            Ill: it cannot be built.
        """
        config = self.config
        chosen = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        autos = [auto for auto in AUTO if takes(auto, config)]
        if not autos:
            advice = "examine the model that it is part of, or load it yourself and call hf_posenc.diagnose(model)"
            raise Ill(Fault("configuration", f"{type(config).__name__} is that of no model with a decoder of text", advice))
        try:
            with torch.device("meta"):
                return autos[0].from_config(config, trust_remote_code=self.trust, **chosen)
        except Exception as error:  # whatever a family raises
            raise Ill(unbuilt(config, error)) from error


def encodings_in(said: Mapping[str, Any]) -> list[str]:
    """The patches of hf_posenc that a configuration speaks of, in words."""
    return [f"{each['name']} on layers {ranges(each['layers'])}" for each in said.get("positional_encoding") or []]


def takes(auto: Any, config: PretrainedConfig) -> bool:
    """Whether an Auto class has a model for a configuration; one with an encoder only where it says that it has one."""
    known = type(config) in auto._model_mapping or auto.__name__ in (getattr(config, "auto_map", None) or {})
    return known and (auto.__name__ not in BESIDE_ENCODER or config.is_encoder_decoder)


def unreadable(said: dict[str, Any], trust: bool, error: Exception) -> Fault:
    """Why transformers does not read a configuration of which config.json holds what is `said`."""
    model_type = said.get("model_type")
    if said.get("auto_map") and not trust:
        advice = "read that code, and if you trust it, name --trust_remote_code"
        return Fault("configuration", f"model type {model_type!r} is code that lies beside the weights", advice)
    if not is_model_type(str(model_type)) and not said.get("auto_map"):
        advice = "update transformers, or give config.json the auto_map of the code that it needs (--trust_remote_code)"
        return Fault(
            "configuration", f"model type {model_type!r} is unknown to this transformers, and the checkpoint brings no code", advice
        )
    found = next(iter(of_scaling(rotary(said))), None)
    return found or Fault("configuration", f"transformers does not read it: {one_line(error)}", "mend it in config.json")


def rotary(said: dict[str, Any]) -> PretrainedConfig:
    """What is said of the rotation, as a configuration that nobody has checked."""
    config, text = PretrainedConfig(), said.get("text_config") or said
    for name in ("max_position_embeddings", "original_max_position_embeddings"):
        setattr(config, name, text.get(name))
    config.rope_parameters = text.get("rope_parameters") or text.get("rope_scaling")
    return config


def unbuilt(config: PretrainedConfig, error: Exception) -> Fault:
    what = f"the model cannot be built from it: {one_line(error)}"
    return Fault("configuration", what, "mend it in config.json, or load the model yourself and call hf_posenc.diagnose(model)")


def shallow(record: Patch) -> PreTrainedModel:
    """The stock model of `record` with the first layer of each kind, without numbers; as deep as it is where that cannot be built."""
    try:
        with torch.device("meta"):
            return _built(record, cut(stock_config(record)))
    except Exception:  # a pattern of layers that means nothing when it is cut
        with torch.device("meta"):
            return _built(record, stock_config(record))


def twin(record: Patch, device: torch.device) -> Any:
    """The stock model of `record` with the first layer of each kind, narrow, in float32, with random weights.

    Raises:
        ValueError: it cannot be built at this size.
    """
    config = small(cut(stock_config(record)))
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._attn_implementation = record.live_backend if record.live_backend in record.architecture.seam.scores else None
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            model: Any = _built(record, config)
            sharpen(model)
    except Exception as error:  # whatever a family raises
        raise ValueError(f"a small {type(record.model).__name__} cannot be built: {one_line(error)}") from error
    return model.float().eval().to(device)


def _built(record: Patch, config: PretrainedConfig) -> Any:
    model = type(record.model)._from_config(config)
    for module in model.modules():  # a class that patches itself when it is built
        if itself := module.__dict__.get(RECORD):
            uninstall(itself)
    return model


def stock_config(record: Patch) -> PretrainedConfig:
    """A copy of the configuration of the whole model, as before any patch."""
    return copy.deepcopy(with_part(record.model.config, record.backbone.config, record.native_config()))
