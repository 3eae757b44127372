"""The training loss by chunks of tokens, so that no [B, L, V] logits are ever held, forward or backward."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from ..compat import CACHE
from ..evaluation.token_nll import Head, decode, evaluating, find_head, input_device, output_head
from .longce import LongCE
from .packing import IGNORED

CHUNK = "loss_chunk"
"""Attribute of a model that holds the size of its chunks."""
WEIGHTS = "loss_weights"
"""Attribute of a model that holds how tokens are weighed while it trains, or None."""
ROWS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")
"""Inputs with a place for each token, the second dimension; the last one of positions."""
MARK = "chunks_loss"
"""Attribute of a forward that computes the loss in chunks."""


def chunk_loss(model: Any, chunk: int = 1024, weights: LongCE | None = None) -> Any:
    """Let `model(..., labels=...)` compute its loss `chunk` tokens at a time, inside its own forward, and return no logits.

    The numbers are those of transformers' `ForCausalLMLoss`: labels shifted, -100 left out, the mean over `num_items_in_batch` where
    `Trainer` gives it; with `by_token=True`, the nats [B, L] of each. The backward pass makes the logits of each chunk again: one more
    pass of the output layer, against [B, L, V] logits and their gradients in memory. A call without labels is the stock forward, and so
    is label smoothing of `Trainer`, which needs all logits; its `compute_metrics` needs them too, and a model with the full loss. One
    instance changes; call this before `Trainer` and `accelerate` wrap the model, before or after PEFT does.

    Args:
        model: a transformers causal language model, or a PEFT model around one.
        chunk: tokens of all rows together whose logits are in memory at a time.
        weights: of the tokens while the model trains; label smoothing, which has no labels left here, knows nothing of them.

    Returns:
        the model.

    Raises:
        ValueError: its loss is not the cross-entropy of an output layer that we can call, or something else has replaced its forward.
            It is unchanged then.
    """
    base = transformers_model(model)
    if chunk < 1:
        raise ValueError(f"a chunk has at least 1 token, got {chunk}")
    if not is_chunked(base):
        check_model(base)
        base.forward = MethodType(_chunked_forward(type(base).forward), base)
    setattr(base, CHUNK, chunk)
    setattr(base, WEIGHTS, weights)
    return model


def full_loss(model: Any) -> Any:
    """Undo `chunk_loss`: the stock forward again. A model whose loss is not chunked is left alone. Returns the model."""
    base = transformers_model(model)
    if is_chunked(base):
        del base.forward
        delattr(base, CHUNK)
        delattr(base, WEIGHTS)
    return model


def transformers_model(model: Any) -> PreTrainedModel:
    """The transformers model inside a PEFT model, or the model itself; ValueError for anything else."""
    base = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
    if not isinstance(base, PreTrainedModel):
        raise ValueError(f"expected a transformers model, got {type(model).__name__}; unwrap it first (for DDP: model.module)")
    return base


def is_chunked(model: Any) -> bool:
    """Whether the loss of this transformers model is computed in chunks, also where accelerate has wrapped its forward since."""
    forward = model.__dict__.get("forward")
    return forward is not None and hasattr(inspect.unwrap(getattr(forward, "__func__", forward)), MARK)


def check_model(model: Any) -> None:
    """Raise ValueError where the chunked loss would not be the loss of the model, seen on a few tokens."""
    family = type(model).__name__
    if "forward" in model.__dict__:
        raise ValueError(f"the forward of this {family} has been replaced by another tool; call chunk_loss before that")
    refuse_router_loss(model.config, {})
    ids = torch.arange(8, device=input_device(model)) % model.config.get_text_config().vocab_size
    head = find_head(model, ids)
    if head is None:
        raise ValueError(f"the output layer of {family} does something that is not understood: train it with the full loss")
    with evaluating(model):
        own = model(input_ids=ids[None], labels=ids[None], use_cache=False).loss
        ours = chunked_cross_entropy(head, decode(model, ids[None]), shift(ids[None]), 3)
    if not torch.allclose(ours, own.to(ours), rtol=2e-2 if model.dtype.itemsize < 4 else 1e-4):
        raise ValueError(f"the loss of {family} is more than the cross-entropy of its logits: train it with the full loss")


def refuse_router_loss(config: Any, kwargs: dict[str, Any]) -> None:
    """Raise ValueError where the load-balancing loss of a mixture of experts would be lost."""
    if kwargs.get("output_router_logits") or getattr(config.get_text_config(), "output_router_logits", False):
        raise ValueError("the chunked loss leaves out the router loss: set output_router_logits=False, or train with the full loss")


def _chunked_forward(stock: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a class, with the loss in chunks. Its signature stays that of the class: `Trainer` reads it."""
    signature = inspect.signature(stock)
    names = list(signature.parameters)[1:]

    @functools.wraps(stock)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs = dict(zip(names, args, strict=False)) | kwargs
        return stock(self, **kwargs) if kwargs.get("labels") is None else _with_loss(self, **kwargs)

    # accelerate, where it takes autocast off again, goes down to the last __wrapped__: this is as far as it may go.
    del forward.__wrapped__
    vars(forward).update({"__signature__": signature, MARK: True})
    return forward


@can_return_tuple
def _with_loss(
    model: Any,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels: Tensor | None = None,
    logits_to_keep: Any = 0,
    by_token: bool = False,
    **inputs: Any,
) -> CausalLMOutputWithPast:
    refuse_router_loss(model.config, inputs)
    head, chunk, weights = output_head(model), getattr(model, CHUNK), getattr(model, WEIGHTS) if model.training else None
    targets = shift(labels) if shift_labels is None else shift_labels
    short = None if weights is None else short_nats(model, head, weights, targets, chunk, inputs)  # before anything is kept for backward
    states = model.get_decoder()(**inputs)
    nats = chunked_nats(head, states.last_hidden_state, targets, chunk)
    if weights is not None and short is not None:
        nats = nats * weights.weights(nats, short.to(nats))
    loss = nats if by_token else mean_nats(nats, targets, num_items_in_batch)
    kept = {name: states.get(name) for name in (CACHE, "hidden_states", "attentions")}
    return CausalLMOutputWithPast(loss=loss, **kept)


def shift(labels: Tensor) -> Tensor:
    """The target of each position: labels [B, L] one place to the left, and -100 at the end."""
    return F.pad(labels[..., 1:], (0, 1), value=IGNORED)


def chunked_cross_entropy(head: Head, hidden: Tensor, targets: Tensor, chunk: int, count: Tensor | int | None = None) -> Tensor:
    """Nats summed over the targets [B, L] that are not -100, divided by `count`, by default their number, from hidden states [B, L, M]."""
    return mean_nats(chunked_nats(head, hidden, targets, chunk), targets, count)


def mean_nats(nats: Tensor, targets: Tensor, count: Tensor | int | None) -> Tensor:
    """The sum of the nats [B, L] of `targets`, divided by `count`, by default the number of targets that are not -100."""
    count = (targets != IGNORED).sum() if count is None else count
    return nats.sum() / (count.to(nats.device) if isinstance(count, Tensor) else count)


def chunked_nats(head: Head, hidden: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Nats of the targets [B, L], 0 for -100, from hidden states [B, L, M]."""
    states, wanted = hidden.flatten(0, 1), targets.flatten().to(hidden.device)
    parts = [
        checkpoint(_nats, head, part, target, use_reentrant=False)
        for part, target in zip(states.split(chunk), wanted.split(chunk), strict=True)
    ]
    return torch.cat(parts).view(targets.shape)


def _nats(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """Nats of one chunk, in float32 at least."""
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets.to(logits.device), ignore_index=IGNORED, reduction="none")


@torch.no_grad()
def short_nats(model: Any, head: Head, weights: LongCE, targets: Tensor, chunk: int, inputs: dict[str, Any]) -> Tensor:
    """Nats [B, L] of the targets given a short context; NaN where there is no shorter one than the row has."""
    found = torch.full(targets.shape, torch.nan, dtype=torch.promote_types(model.dtype, torch.float32), device=targets.device)
    for start, stop in weights.windows(targets.shape[1]):
        read, here = slice(start, stop - 1), slice(start + weights.short - 1, stop - 1)  # what predicts the last token is read last
        states = model.get_decoder()(**cut_inputs(inputs, read)).last_hidden_state[:, weights.short - 1 :]
        found[:, here] = chunked_nats(head, states, targets[:, here], chunk).to(found)
    return found


def cut_inputs(inputs: dict[str, Any], read: slice) -> dict[str, Any]:
    """The inputs of some tokens of each row, to be read by themselves.

    Raises:
        ValueError: an input that is not one of `ROWS`, or a mask that has more dimensions.
    """
    cut: dict[str, Any] = {"use_cache": False}
    for name, value in inputs.items():
        if isinstance(value, Tensor) and name in ROWS and not (name == "attention_mask" and value.ndim != 2):
            cut[name] = value[..., read] if name == "position_ids" else value[:, read]
        elif isinstance(value, Tensor) or (name == CACHE and value is not None):
            raise ValueError(f"LongCE cannot cut {name} into short contexts: train without it, or with the plain loss")
        elif name != "use_cache" and not name.startswith("output_"):
            cut[name] = value
    return cut
