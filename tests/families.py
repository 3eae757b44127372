"""A tiny random model of any family of transformers: the default configuration of the type, cut to a few layers and made narrow.

Widths of heads, rotary parameters and windows are those of the family; layers are cut so that one of each kind stays.
"""

from __future__ import annotations

from typing import Any

import tiny  # noqa: F401  (quiet, offline, one thread)
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from hf_posenc.doctor.model_types import causal_types, cut, default_config
from hf_posenc.patching.twin import sharpen, small

# -- the types --------------------------------------------------------------------------------------------------------


def image_text_types() -> list[str]:
    names = {**auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, **auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES}
    return sorted(set(names) - set(causal_types()))


def seq2seq_types() -> list[str]:
    names = {**auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, **auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES}
    return sorted(set(names) - set(image_text_types()))


def model_class(model_type: str, seq2seq: bool = False) -> Any:
    """The class that the Auto classes build for the type."""
    decoders = [
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    ]
    pairs = [auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES]
    name = next(names[model_type] for names in (pairs + decoders if seq2seq else decoders + pairs) if model_type in names)
    return getattr(transformers, name)


# -- building -----------------------------------------------------------------------------------------------------------


def tiny_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """The configuration of the type, tiny. `changes` are set last, on the text configuration where there is one."""
    config = small(cut(default_config(model_type)))
    text = config.get_text_config(decoder=True)
    for name, value in changes.items():
        setattr(text, name, value)
    config._attn_implementation = None  # what transformers takes by default
    return config


def tiny_model(model_type: str, seed: int = 0, seq2seq: bool = False, **changes: Any) -> PreTrainedModel:
    """A random model of the type in float32, in eval mode, with weights under which attention is not flat."""
    torch.manual_seed(seed)
    config, family = tiny_config(model_type, **changes), model_class(model_type, seq2seq)
    if not isinstance(config, family.config_class):
        config = config.get_text_config()  # as the Auto classes do with the configuration of a wrapper
    model = family._from_config(config).float().eval()
    sharpen(model)
    return model
