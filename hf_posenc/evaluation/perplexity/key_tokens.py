"""Key tokens: those that a long context helps to predict (LongPPL, Fang et al. 2024, arXiv 2410.23771)."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...files import replace_atomically
from ..corpus import Document
from ..models import digest, weights_digest
from ..token_nll import Progress, find_head
from .protocols import Sliding
from .run import Run, batches, checked


@dataclass(frozen=True)
class KeyTokens:
    """Which tokens count, by an evaluator model: the stock model, which never sees more context than it was trained for.

    A token x is a key token where

        log p(x | long context) - log p(x | short context) > gain   and   log p(x | long context) > floor    (their eq. 5 to 7)

    Both contexts are sliding windows, so memory does not grow with the document. Differs from the paper: the evaluator there is a
    large long-context model and the short context 4,096 tokens; here it is the measured model itself before it is patched, as
    far as it was trained.

    Args:
        long: tokens of a long window; None takes the context that the model was trained for.
        short: tokens of a short window.
        stride: tokens between short windows; those between long ones are a quarter of the window.
        gain: in nats.
        floor: in nats, of a log-probability.
    """

    long: int | None = None
    short: int = 1024
    stride: int = 256
    gain: float = 2.0
    floor: float = -2.0

    def of(self, model: Any) -> KeyTokens:
        """With the long window in tokens.

        Raises:
            ValueError: the long window is not longer than the short one.
        """
        long = self.long or trained_length(model)
        if not self.stride < self.short < long:
            raise ValueError(f"key tokens need stride < short < long, got {self.stride}, {self.short} and {long} (what it was trained for)")
        return replace(self, long=long)

    def tokens(self, tokens: int) -> int:
        """How many tokens the evaluator runs for a document of `tokens` tokens."""
        return sum(run.tokens(tokens) for run in self.runs())

    def runs(self) -> tuple[Run, Run]:
        """The long and the short windows."""
        assert self.long is not None
        how: dict[str, Any] = {"one_forward": False, "length_dependent": False, "pass_tokens": None, "batch_tokens": 8192}
        windows = (Sliding(self.long // 4), (self.long,)), (Sliding(self.stride), (self.short,))
        long, short = (Run(*each, **how, last_k=1, chunk=1024) for each in windows)
        return long, short

    def find(
        self, model: Any, document: Document, progress: Progress | None = None, folder: str | os.PathLike | None = None
    ) -> torch.Tensor:
        """[T] bool, True at key tokens. With a folder, what was found before is taken from there."""
        settings = {**asdict(self), "weights": weights_digest(model), "dtype": str(model.dtype)}
        file = None if folder is None else Path(folder) / f"keys-{document.sha256}-{digest(settings)}.npy"
        if file is not None and file.exists():
            if progress is not None:
                progress(self.tokens(len(document)))
            return torch.from_numpy(np.load(file))
        long, short = (nats(model, run, document, progress) for run in self.runs())
        keys = torch.zeros(len(document), dtype=torch.bool)
        keys[1:] = (short - long > self.gain) & (-long > self.floor)
        if file is not None:
            replace_atomically(file, lambda partial: np.save(partial, keys.numpy()))
        return keys


def nats(model: Any, run: Run, document: Document, progress: Progress | None) -> torch.Tensor:
    """Nats [T - 1] of every token but the first, each in the window that `run` scores it in."""
    found, head = torch.zeros(len(document) - 1), find_head(model, document.input_ids)
    for _, windows in run.windows(len(document)):
        for batch in batches(windows, run.batch_tokens):
            for window, nll in zip(batch, run.nats(model, head, document, batch, progress), strict=True):
                found[window.first - 1 : window.last - 1] = checked(nll, document, window)
    return found


def trained_length(model: Any) -> int:
    """The context that the model was trained for, in tokens: that before its RoPE was scaled, where the config says so."""
    config = model.config.get_text_config()
    scaled = (getattr(config, "rope_parameters", None) or {}).get("original_max_position_embeddings")
    return scaled or config.max_position_embeddings
