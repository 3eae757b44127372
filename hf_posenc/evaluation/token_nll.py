"""The negative log-likelihood of every token of a document, without ever holding [L, vocabulary] logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache

from ..compat import CACHE

Progress = Callable[[float], None]
Head = Callable[[torch.Tensor], torch.Tensor]


def find_head(model: Any, sample_ids: torch.Tensor) -> Head | None:
    """The map from the decoder's hidden states [B, L, M] to logits [B, L, V], or None where ours is not the model's.

    The output layer is followed by the scale and the soft cap that some families apply in their own forward (`logit_scale`
    of Cohere, `logits_scaling` of Granite, `final_logit_softcapping` of Gemma 2). The result is compared with the model's own
    logits on the first 8 tokens of `sample_ids` [L]: a family that does something else is found out here, not in the numbers.
    """
    ids = sample_ids[None, :8].to(input_device(model))
    with evaluating(model):
        own = model(input_ids=ids, use_cache=False).logits
        try:
            head = output_head(model)
            ours = head(decode(model, ids))
        except (AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError):
            return None
    return head if same_logits(ours, own) else None


def same_logits(ours: torch.Tensor, own: torch.Tensor) -> bool:
    """Equal up to rounding in their precision, relative to the largest logit; a NaN equals a NaN."""
    tolerance = 1e-4 if own.dtype in (torch.float32, torch.float64) else 2e-2
    largest = own.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().max().item()
    return ours.shape == own.shape and torch.allclose(ours.to(own), own, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


def output_head(model: Any) -> Head:
    """The output layer with the scale and soft cap of the model's config."""
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    softcap = getattr(config, "final_logit_softcapping", None)

    def head(hidden: torch.Tensor) -> torch.Tensor:
        logits = layer(hidden) * scale
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    return head


def decode(model: Any, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """The last hidden states [B, L, M] of one pass of the decoder over ids [B, L]."""
    return model.get_decoder()(input_ids=ids, **{"use_cache": False, **inputs}).last_hidden_state


def token_nll(model: Any, input_ids: torch.Tensor, head: Head | None, chunk: int = 1024, progress: Progress | None = None) -> torch.Tensor:
    """Nats of each token of input_ids [L] given those before it, in one forward pass: [L - 1], see `window_nll`."""
    inputs, targets = input_ids[None], input_ids[None, 1:]
    return window_nll(model, inputs, targets, slice(0, len(input_ids) - 1), head, chunk, progress=progress)[0]


def window_nll(
    model: Any,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    scored: slice,
    head: Head | None,
    chunk: int = 1024,
    *,
    offset: int = 0,
    pass_tokens: int | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Nats of some predictions in windows of equal shape; output layer and cross-entropy see the scored tokens only, in chunks.

    Args:
        model: a causal language model.
        inputs: [B, n] int64, the windows.
        targets: [B, s] int64, the tokens that the inputs `scored` (s of them in each window) predict.
        head: from `find_head`. With None the model's own forward makes all [B, n, V] logits at once: correct for every model, at the
            price of that memory.
        chunk: tokens per chunk of output layer and loss.
        offset: position of the first token of each window.
        pass_tokens: run the windows so many tokens at a time through a KV cache; by default in one pass without a cache.
        progress: called with a number of tokens each time that much of the pass is done.

    Returns:
        [B, s] float32 on the CPU (float64 for a float64 model).
    """
    inputs = inputs.to(input_device(model))
    found = []
    with evaluating(model), reporting(model, inputs.numel(), progress):
        for start, states in passes(model, inputs, head, offset, pass_tokens):
            first, last = max(scored.start, start), min(scored.stop, start + states.shape[1])
            if first < last:
                hidden, wanted = states[:, first - start : last - start], targets[:, first - scored.start : last - scored.start]
                found.append(chunked_cross_entropy(head or nn.Identity(), hidden, wanted, chunk))
    return torch.cat(found, dim=1)


def passes(model: Any, inputs: torch.Tensor, head: Head | None, offset: int, pass_tokens: int | None) -> Iterator[tuple[int, torch.Tensor]]:
    """Index of the first token and last hidden states [B, p, M] (logits where there is no head) of each pass over inputs [B, n]."""
    run = decode if head is not None else full_logits
    positions = {"position_ids": torch.arange(inputs.shape[1], device=inputs.device)[None] + offset} if offset else {}
    if pass_tokens is None or pass_tokens >= inputs.shape[1]:
        yield 0, run(model, inputs, **positions)
        return
    cache = {CACHE: DynamicCache(config=model.config.get_text_config()), "use_cache": True}
    for start in range(0, inputs.shape[1], pass_tokens):
        yield start, run(model, inputs[:, start : start + pass_tokens], **cache)


def full_logits(model: Any, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Logits [B, L, V] from the model's own forward."""
    return model(input_ids=ids, **{"use_cache": False, **inputs}).logits


def chunked_cross_entropy(head: Head, hidden: torch.Tensor, targets: torch.Tensor, chunk: int) -> torch.Tensor:
    """Nats [B, s] of targets [B, s] from hidden states [B, s, M]."""
    pairs = zip(hidden.flatten(0, 1).split(chunk), targets.flatten().split(chunk), strict=True)
    return torch.cat([cross_entropy(head(states[None])[0], target) for states, target in pairs]).view(targets.shape)


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Nats per token from logits [L, V] and targets [L], in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, target.to(logits.device), reduction="none").cpu()


def exp(nats: float) -> float:
    """Perplexity of a mean of nats, infinite where it overflows."""
    return math.inf if nats >= 700 else math.exp(nats)


def input_device(model: Any) -> torch.device:
    """The device that the token embedding lies on."""
    return model.get_input_embeddings().weight.device


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Eval mode without gradients, then the mode each module was in.

    Not `inference_mode`: a frequency table that a model or an encoding stores during the pass would stay an inference tensor,
    and a later training step could not use it.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def reporting(model: Any, tokens: int, progress: Progress | None) -> Iterator[None]:
    """Report tokens while they go through the model's layers, each layer an equal share; all at the end where no layers are found."""
    layers = layer_stack(model)

    def report(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states = output if isinstance(output, torch.Tensor) else output[0]
        progress(states.shape[:-1].numel() / len(layers))  # type: ignore[misc]

    hooks = [] if progress is None else [layer.register_forward_hook(report) for layer in layers]
    try:
        yield
        if progress is not None and not layers:
            progress(tokens)
    finally:
        for hook in hooks:
            hook.remove()


def layer_stack(model: Any) -> list[nn.Module]:
    """The first `ModuleList` with as many modules as the config has layers; empty where there is none."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    stacks = (list(module) for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    return next(stacks, [])
