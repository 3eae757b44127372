"""How far the positions of a model reach, and whether they depend on the length of its input."""

from __future__ import annotations

from typing import Any

import torch

from ..encodings.rotary.rope import is_fixed
from ..inspection import inspect
from .models import live_encodings
from .token_nll import evaluating, input_device


def check_position_table(model: Any, length: int) -> None:
    """Refuse a length beyond a table of learned positions here, because on CUDA the lookup itself would abort the process."""
    rows = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokens = model.get_input_embeddings()
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding) and module is not tokens]
    if rows is not None and length > rows and any(0 <= table.num_embeddings - rows <= 2 for table in tables):
        raise ValueError(
            f"the model has a table of {rows:,} positions and {length:,} were asked for: ask for shorter lengths, or patch it first; "
            f"the encoding 'learned' with max_positions={length} grows the table"
        )
    for encoding in live_encodings(model):
        encoding.check_positions(length - 1)


def beyond_native(model: Any, length: int) -> int:
    """The native context of an unpatched model, in tokens.

    Raises:
        ValueError: it is patched, or `length` is not beyond that.
    """
    if live_encodings(model):
        raise ValueError("the model is patched: hf_posenc.unpatch(model) first, as others take the place of its own encoding")
    native = inspect(model).context_length
    if length <= native:
        raise ValueError(f"length is to be beyond the native context of the model, {native} tokens; got {length}")
    return native


def is_length_dependent(model: Any) -> bool:
    """Whether the config's own `rope_parameters`, flat or nested per layer type, name a `rope_type` that stock transformers computes
    from the length of the whole input, so that a prefix of a long pass is not a short pass.
    """
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    flat_and_nested = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return not all(map(is_fixed, flat_and_nested))


def forget_length(model: Any) -> None:
    """Let stock dynamic NTK, which keeps the base of the longest input until a short one comes, have a short one."""
    if is_length_dependent(model):
        with evaluating(model):
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=input_device(model)), use_cache=False)
