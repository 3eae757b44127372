"""A small copy of a model: its own classes and its own configuration, at sizes that run in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

from .installing import uninstall
from .record import RECORD, Patch

VOCABULARY, INNER, EXPERTS = 128, 64, 4


def twin_of(record: Patch) -> Patch:
    """An unpatched model as that of `record` was before any patch: float32 on the CPU, as many layers, narrow, with random weights.

    Raises:
        ValueError: the family cannot be built at this size.
    """
    config = small(record.native_config())
    model_class = type(record.model.base_model)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            model: Any = model_class(config)
            backbone = record.architecture.backbone(model)
            if itself := backbone.__dict__.get(RECORD):  # a class that patches itself when it is built
                uninstall(itself)
            _sharpen(model)
    except Exception as error:
        raise ValueError(f"a small {model_class.__name__} to try the patch on cannot be built: {error}") from error
    return Patch(model.float().eval(), record.architecture, backbone)


def small(config: PretrainedConfig) -> PretrainedConfig:
    """`config` with few and narrow parts; what positions depend on stays: layers, width of a head, rotary parameters, windows."""
    heads, width = config.num_attention_heads, config.hidden_size
    head_dim = getattr(config, "head_dim", None) or width // heads
    shared = (getattr(config, "num_key_value_heads", None) or heads) < heads
    sizes: dict[str, int] = {"num_attention_heads": 2, "num_key_value_heads": 1 if shared else 2, "hidden_size": 2 * head_dim}
    if getattr(config, "word_embed_proj_dim", None):
        sizes["word_embed_proj_dim"] = 2 * head_dim if config.word_embed_proj_dim == width else head_dim
    sizes |= {"vocab_size": VOCABULARY, "intermediate_size": INNER, "ffn_dim": INNER, "n_inner": INNER}
    sizes |= {"num_local_experts": EXPERTS, "num_experts": EXPERTS, "num_experts_per_tok": EXPERTS}
    for name, size in sizes.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, size)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, None)
    config._attn_implementation = "eager"
    return config


@torch.no_grad()
def _sharpen(model: torch.nn.Module) -> None:
    """Weights under which the queries and keys of all layers tell tokens, positions and dimensions apart, as trained ones do."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
        else:  # a norm that weighs all dimensions alike would hide whether it comes before or after a rotation
            parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
