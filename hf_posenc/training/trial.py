"""What a model makes of positions, tried on a few tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .. import patching
from ..evaluation.models import live_encodings
from ..evaluation.token_nll import evaluating, input_device


def logits_at(model: Any, *places: Tensor) -> list[Tensor]:
    """Logits [n,V] of a few tokens at each of `places` [n]; learned encodings as they are once they have moved from where they start.

    A patched model computes them by the plain definition, because fused kernels may answer NaN with 0.
    """
    device, vocabulary = input_device(model), model.get_input_embeddings().weight.shape[0]
    plain = {"output_attentions": True} if live_encodings(model) else {}
    with evaluating(model), torch.random.fork_rng(), stirred(model):
        found = []
        for positions in places:
            ids = torch.arange(2, 2 + len(positions), device=device)[None] % vocabulary
            inputs = {"position_ids": positions[None].to(device), "attention_mask": torch.ones_like(ids), "use_cache": False}
            found.append(model(ids, **inputs, **plain)[0][0].float())
    return found


@contextmanager
def stirred(model: Any) -> Iterator[None]:
    """A block in which the parameters of the encodings are a little off: many start at zero, from where they say nothing of themselves."""
    held = [p for p in _parameters(model) if not p.is_meta]
    before = [p.detach().clone() for p in held]
    try:
        for p in held:
            p.data.add_(0.1 * torch.randn_like(p))
        yield
    finally:
        for p, old in zip(held, before, strict=True):
            p.data.copy_(old)


def _parameters(model: Any) -> list[torch.nn.Parameter]:
    """Those of the encodings that are live in the model, whatever has wrapped them."""
    if not live_encodings(model):
        return []
    record = patching.patch_of(model)
    modules = [record.slot if p.in_table else getattr(record.backbone, p.attribute, p.encoding) for p in record.placements]
    return list(dict.fromkeys(p for module in modules for p in module.parameters()))
