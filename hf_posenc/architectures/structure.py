"""Model types that are not registered, such as custom code: what their modules say, where they follow the conventions of transformers.

What is found is a guess. A patch shows on a twin which of the guesses holds, and refuses where none does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .base import Architecture
from .tables import TableArchitecture


def candidates(backbone: PreTrainedModel) -> Iterator[Architecture]:
    """What the family of a decoder may be, by its structure; nothing where there is none that could be patched."""
    if (found := _layers(backbone)) is None:
        return
    path, attention = found
    for name, module in backbone.named_children():
        if hasattr(module, "inv_freq"):
            for interleaved in (False, True):
                yield _filled(Architecture(), layers=path, attention=attention, slot=name, interleaved=interleaved, packs=False)
        elif isinstance(module, nn.Embedding) and module is not backbone.get_input_embeddings():
            before = module.num_embeddings - getattr(backbone.config, "max_position_embeddings", 0)
            if 0 <= before <= 2:
                yield _filled(TableArchitecture(), layers=path, attention=attention, slot=name, offset=before, packs=False)


def _layers(backbone: nn.Module) -> tuple[str, str] | None:
    """The path of the layers, and that of the attention in a layer."""
    for path, module in backbone.named_children():
        if isinstance(module, nn.ModuleList) and len(module):
            for name, child in module[0].named_children():
                if hasattr(child, "is_causal") or hasattr(child, "layer_idx"):
                    return path, name
    return None


def _filled(architecture: Any, **entries: Any) -> Architecture:
    for name, value in entries.items():
        setattr(architecture, name, value)
    return architecture
