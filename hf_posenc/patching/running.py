"""Running a model, or its twin, on a handful of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..attention.cached import arguments_of, cache_in
from ..attention.probe import Handed
from ..attention.tokens import embedded as with_embeddings
from ..compat import CACHES
from ..encodings import PositionalEncoding, create
from .installing import install, uninstall
from .record import Patch, Placement, Request, attribute_name

TOKENS = 8

_trying: ContextVar[bool] = ContextVar("posenc_trying", default=False)


def is_trying() -> bool:
    """Whether a trial is made: a class that patches itself when it is built does so in its twin too."""
    return _trying.get()


@contextmanager
def trying() -> Iterator[None]:
    """A block that makes a trial, and takes no random numbers from what comes after it."""
    token = _trying.set(True)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        _trying.reset(token)


@contextmanager
def having(subject: Patch, placements: list[Placement]) -> Iterator[None]:
    install(subject, placements)
    try:
        yield
    finally:
        uninstall(subject)


def nowhere(subject: Patch) -> Placement:
    """No encoding, in any layer."""
    layers = tuple(subject.attentions)
    return Placement(Request("nope", {}, layers), layers, create("nope", subject.geometry(layers[0])), attribute_name(0), False)


@torch.no_grad()
def look(subject: Patch, pos: Tensor | None = None, embedded: Sequence[PositionalEncoding] = ()) -> dict[int, Handed]:
    """What each layer hands to its attention, where no layer attends to anything.

    Args:
        pos: positions [1,Q]; by default from 0.
        embedded: encodings that act on the embeddings beforehand.
    """
    ids = tokens(subject)
    inputs: dict[str, Any] = {"input_ids": ids} | ({} if pos is None else {"position_ids": pos})
    for encoding in embedded:
        inputs = with_embeddings(subject.backbone, inputs, encoding, positions(subject), [min(subject.attentions)])
    with subject.architecture.seam.looking(subject.backbone.config, subject.attentions.values()) as seen:
        forward(subject, inputs)
    for i, attention in subject.attentions.items():
        if attention not in seen:
            raise ValueError(f"{called(subject)} cannot be patched: the attention of layer {i} never reaches {subject.architecture.seam}")
    return {i: seen[attention] for i, attention in subject.attentions.items()}


@torch.no_grad()
def run(subject: Patch) -> Tensor:
    """Last hidden states [1,Q,M], through the plain definition of attention where the family can be asked for it."""
    with implementation(subject, tried_with(subject)):
        return forward(subject, {"input_ids": tokens(subject)}).last_hidden_state


def tried_with(subject: Patch) -> str:
    """The attention implementation of a trial."""
    seam = subject.architecture.seam
    backend = seam.tried_with(subject.live_backend)
    return seam.implementation(backend) if any(p.in_attention for p in subject.placements) else backend


@torch.no_grad()
def decode(subject: Patch) -> Tensor | None:
    """The last hidden state [1,1,M] of the last token, after a KV cache of the others; None for a family that keeps none, or fails."""
    ids = tokens(subject)
    with implementation(subject, tried_with(subject)):
        try:
            cache = cache_in(forward(subject, {"input_ids": ids[:, :-1]}, use_cache=True))
            name = next((name for name in arguments_of(subject.backbone) if name in CACHES), None)
            if cache is None or name is None:
                return None
            return forward(subject, {"input_ids": ids[:, -1:], name: cache}, use_cache=True).last_hidden_state
        except Exception:
            if subject.placements:
                raise
            return None


def forward(subject: Patch, inputs: dict[str, Any], use_cache: bool = False) -> Any:
    beside = subject.architecture.beside(subject.backbone)
    with torch.autocast(inputs["inputs_embeds" if "inputs_embeds" in inputs else "input_ids"].device.type, enabled=False):
        return subject.backbone(**inputs, **beside, use_cache=use_cache, return_dict=True)


def tokens(subject: Patch) -> Tensor:
    """Token ids [1,Q], none twice; a row each where tokens have several."""
    embedding = subject.embedding
    count = min(TOKENS, subject.max_positions, len(embedding))
    ids = torch.arange(1, 1 + count, device=embedding.device)[None] * (len(embedding) // (count + 1) or 1) % len(embedding)
    return ids.expand(subject.architecture.ids_per_token(subject.backbone.config), -1)


def positions(subject: Patch) -> Tensor:
    """Where the tokens stand, [1,Q]."""
    ids = tokens(subject)
    return torch.arange(ids.shape[1], device=ids.device)[None]


@contextmanager
def implementation(subject: Patch, name: str) -> Iterator[None]:
    config = subject.backbone.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def called(subject: Patch) -> str:
    return type(subject.backbone).__name__
