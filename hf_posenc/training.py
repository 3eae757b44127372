"""What training with `Trainer` needs beside it: packed blocks, and the loss at several lengths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import TrainerCallback

from .evaluation.corpus import CorpusError
from .evaluation.token_nll import evaluating, find_head, input_device, token_nll

LOGITS_AT_ONCE = 1 << 26
IGNORED = -100
"""The label that the loss of transformers leaves out."""


def pack(texts: Dataset, tokenizer: Any, block_size: int, num_proc: int | None = None) -> Dataset:
    """Documents as blocks of exactly `block_size` tokens, EOS after each document. No token is lost, and none is there twice.

    Tokens and blocks are cached by `datasets`. Blocks cross document boundaries, as is usual in pretraining. 1,000 documents are packed
    at a time, so memory does not grow with the data; what is left of them is filled up with padding that no loss counts.

    Args:
        texts: rows with a column "text"; empty ones are skipped.
        tokenizer: of the model; without an EOS token the documents simply follow each other.
        block_size: tokens in a block.
        num_proc: processes that tokenize.

    Returns:
        rows with "input_ids" and "labels" of `block_size` tokens; a label of -100 marks padding.

    Raises:
        CorpusError: not even one block is full; the message says how many tokens there are.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def tokenize(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        documents = [text for text in rows["text"] if text and text.strip()]
        ids = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"] if documents else []
        return {"input_ids": [document + end for document in ids]}

    def cut(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        stream = list(chain.from_iterable(rows["input_ids"]))
        blocks = [stream[i : i + block_size] for i in range(0, len(stream), block_size)]
        missing = [block_size - len(block) for block in blocks]
        inputs = [block + n * (end or [0]) for block, n in zip(blocks, missing, strict=True)]
        return {"input_ids": inputs, "labels": [block + n * [IGNORED] for block, n in zip(blocks, missing, strict=True)]}

    tokens = texts.map(tokenize, batched=True, remove_columns=texts.column_names, num_proc=num_proc, desc="tokenizing")
    available = sum(map(len, tokens["input_ids"])) if len(tokens) < block_size else block_size
    if available < block_size:
        raise CorpusError(f"the text has {available:,} tokens, fewer than one block of {block_size:,}: bring more text or a smaller block")
    return tokens.map(cut, batched=True, remove_columns=tokens.column_names, num_proc=num_proc, desc="packing")


def unpack(blocks: Dataset) -> torch.Tensor:
    """The tokens of packed blocks in their order, without padding: [T] int64."""
    ids, labels = (torch.tensor(blocks[name]) for name in ("input_ids", "labels"))
    return ids[labels != IGNORED]


def window_nll(model: Any, ids: torch.Tensor, length: int, max_windows: int | None = None) -> tuple[float, int]:
    """Mean nats per predicted token over consecutive windows (protocol `disjoint`), every token weighted equally.

    Args:
        model: a causal language model; its mode (train, eval) is restored.
        ids: [T] token ids.
        length: tokens in a window, of which length - 1 are predicted.
        max_windows: use the first so many.

    Returns:
        nats, and the number of predictions.

    Raises:
        CorpusError: the text is shorter than one window.
    """
    count = min(len(ids) // length, max_windows or len(ids))
    if count == 0:
        raise CorpusError(f"the evaluation text has {len(ids):,} tokens, fewer than one window of {length:,}")
    windows = ids[: count * length].view(count, length).to(input_device(model))
    at_once = max(1, LOGITS_AT_ONCE // (length * model.config.get_text_config().vocab_size))
    with evaluating(model):
        total = sum(_batch_nll(model, batch) for batch in windows.split(at_once))
    return total / (count * (length - 1)), count * (length - 1)


def _batch_nll(model: Any, batch: torch.Tensor) -> float:
    """Summed nats of a batch of windows [B,L]; a single long window goes through the chunked output layer."""
    if len(batch) == 1:
        return token_nll(model, batch[0], find_head(model, batch[0])).double().sum().item()
    logits = model(batch, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()


class LengthEvaluation(TrainerCallback):
    """Logs `eval_nll@L` at several lengths L whenever the Trainer evaluates, and at the end.

    The numbers go through the Trainer's own log, so they reach its state file and every `report_to`, and one of them can be
    `metric_for_best_model`. Unlike `eval_loss` they are weighted by token, not by batch.

    Args:
        ids: [T] token ids to evaluate on.
        lengths: context lengths in tokens.
        max_windows: windows at each length; by default as many as there are, so that every length scores the same text.
    """

    def __init__(self, ids: torch.Tensor, lengths: Sequence[int], max_windows: int | None = None):
        self.ids, self.lengths, self.max_windows = ids, sorted(lengths), max_windows
        self.trainer: Any = None
        self.last: dict[str, float] = {}

    def attach(self, trainer: Any) -> LengthEvaluation:
        """Listen to `trainer`."""
        self.trainer = trainer
        trainer.add_callback(self)
        return self

    def measure(self, model: Any) -> dict[str, float]:
        """nats at each length, under the names they are logged by."""
        return {f"eval_nll@{length}": window_nll(model, self.ids, length, self.max_windows)[0] for length in self.lengths}

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        self._log(model)
        if metrics is not None:
            metrics.update(self.last)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self._log(model)

    def _log(self, model: Any) -> None:
        self.last = self.measure(self.trainer.accelerator.unwrap_model(model))
        self.trainer.log(dict(self.last))


def perplexities(nats: Iterable[float]) -> list[float]:
    """exp of each, infinite where it overflows."""
    return [math.exp(n) if n < 700 else math.inf for n in nats]
