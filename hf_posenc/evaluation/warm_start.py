"""How far a pretrained model is from itself right after a patch, before any training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from ..patching import patch_of
from .corpus import Text, embedded_corpus, encode
from .models import check_tokenizer, check_tokens, encoded, load, load_tokenizer
from .token_nll import evaluating, exp, full_logits, input_device

TOKENS = 256
CHARACTERS = 16
"""Of the text for each token that is wanted: more than a token has, so that there are enough."""


@dataclass(frozen=True)
class WarmStart:
    """A model before and after a patch, on one text.

    Attributes:
        tokens: of the text.
        largest: largest difference of two logits.
        kl: mean of KL(before || after) over the predictions, in nats. Its exponential is the factor on the perplexity of text that the
            model would write itself.
        before, after: nats a token.
    """

    tokens: int
    largest: float
    kl: float
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"right after the patch, on {self.tokens} tokens: logits differ by at most {self.largest:.3g}, KL(before || after) "
            f"{self.kl:.3g} nats a prediction; perplexity {exp(self.before):.4g} -> {exp(self.after):.4g}"
        )


def warm_start(model: Any, ids: torch.Tensor, encoding: str, options: Mapping[str, Any] | None = None) -> WarmStart:
    """Compare `model` as it is with itself patched, on the tokens `ids` [L]; afterwards it is as it was.

    Raises:
        ValueError: the model cannot have this encoding.
    """
    inputs = ids[None].to(input_device(model))
    with evaluating(model):
        before = log_probabilities(model, inputs)
        with encoded(model, encoding, options or {}):
            after = log_probabilities(model, inputs)
    (logits, stock), (patched, ours) = before, after
    targets = ids[1:].to(stock.device)
    return WarmStart(
        tokens=len(ids),
        largest=float((logits - patched).abs().max()),
        kl=float(F.kl_div(ours, stock, log_target=True, reduction="batchmean").clamp(min=0)),
        before=float(F.nll_loss(stock[:-1], targets)),
        after=float(F.nll_loss(ours[:-1], targets)),
    )


def log_probabilities(model: Any, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [L,V] of one row of tokens and their logarithms of probabilities, in float32 at least."""
    logits = full_logits(model, inputs)[0]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits, logits.log_softmax(-1)


def warm_start_of(path: str, encoding: str, options: Mapping[str, Any] | None = None) -> WarmStart:
    """The same for a hub id or path, on the start of the embedded text, as far as the model was trained to read."""
    tokenizer, model = load_tokenizer(path), load(path)
    check_tokenizer(tokenizer, model)
    length = min(TOKENS, patch_of(model).max_positions)
    document = encode(tokenizer, Text("pydoc_data.topics", embedded_corpus()[: CHARACTERS * length])).head(length)
    check_tokens(document, model)
    return warm_start(model, document.input_ids, encoding, options)
