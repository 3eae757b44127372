"""Documents as blocks of one length, and a model that sees where one ends and the next begins."""

from __future__ import annotations

import inspect
from itertools import chain
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.masking_utils import create_masks_for_generate

from ..attention.cached import cache_in
from ..evaluation.corpus import CorpusError
from ..evaluation.token_nll import evaluating, input_device

IGNORED = -100
"""The label that the loss of transformers leaves out."""


def pack(texts: Dataset, tokenizer: Any, block_size: int, num_proc: int | None = None, boundaries: bool = True) -> Dataset:
    """Documents as blocks of exactly `block_size` tokens, EOS after each document. No token is lost, and none is there twice.

    Tokens and blocks are cached by `datasets`. 1,000 documents are packed at a time, so memory does not grow with the data; what is
    left of them is filled up with padding that no loss counts.

    With `boundaries`, positions start again at 0 with each document and with each block, which is how transformers tells packed
    documents apart: no token sees, or is predicted from, another document. That holds without a KV cache and without an attention
    mask, as in `Trainer`, whose default is `use_cache=False`; see `separate_documents` for models that do not look. Without boundaries,
    blocks run across documents, as is usual in pretraining.

    Args:
        texts: rows with a column "text"; empty ones are skipped.
        tokenizer: of the model; without an EOS token the documents simply follow each other.
        block_size: tokens in a block.
        num_proc: processes that tokenize.
        boundaries: keep the documents of a block apart.

    Returns:
        rows of `block_size` tokens: "input_ids"; "labels", where -100 marks padding and, with `boundaries`, the first token of each
        document; and with `boundaries` "position_ids", which padding continues.

    Raises:
        CorpusError: not even one block is full; the message says how many tokens there are.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def tokenize(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        documents = [text for text in rows["text"] if text and text.strip()]
        ids = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"] if documents else []
        return {"input_ids": [document + end for document in ids]}

    def cut(rows: dict[str, list[list[int]]]) -> dict[str, np.ndarray]:
        return cut_blocks(rows["input_ids"], block_size, padding=(end or [0])[0], boundaries=boundaries)

    tokens = texts.map(tokenize, batched=True, remove_columns=texts.column_names, num_proc=num_proc, desc="tokenizing")
    available = sum(map(len, tokens["input_ids"])) if len(tokens) < block_size else block_size
    if available < block_size:
        raise CorpusError(f"the text has {available:,} tokens, fewer than one block of {block_size:,}: bring more text or a smaller block")
    return tokens.map(cut, batched=True, remove_columns=tokens.column_names, num_proc=num_proc, desc="packing")


def cut_blocks(documents: list[list[int]], size: int, padding: int, boundaries: bool) -> dict[str, np.ndarray]:
    """The columns of `pack`, each [N, size], from the token ids of documents."""
    ids = np.fromiter(chain.from_iterable(documents), np.int64)
    starts = np.zeros(len(ids), bool)
    starts[np.cumsum([0, *map(len, documents)])[:-1][[len(document) > 0 for document in documents]]] = boundaries
    missing = -len(ids) % size
    inputs = np.pad(ids, (0, missing), constant_values=padding).reshape(-1, size)
    labels = np.pad(ids, (0, missing), constant_values=IGNORED).reshape(-1, size)
    if not boundaries:
        return {"input_ids": inputs, "labels": labels}
    positions = restart(np.pad(starts, (0, missing)).reshape(-1, size))
    labels[positions == 0] = IGNORED
    return {"input_ids": inputs, "labels": labels, "position_ids": positions}


def restart(starts: np.ndarray) -> np.ndarray:
    """Positions [N, L] that count from 0 at the beginning of each row and wherever `starts` [N, L] is true."""
    steps = np.arange(starts.shape[1])
    return steps - np.maximum.accumulate(np.where(starts, steps, 0), axis=1)


def unpack(blocks: Dataset) -> torch.Tensor:
    """The tokens of packed blocks in their order, without padding: [T] int64."""
    ids, labels = (torch.tensor(blocks[name]) for name in ("input_ids", "labels"))
    real = labels != IGNORED
    if "position_ids" in blocks.column_names:
        real |= torch.tensor(blocks["position_ids"]) == 0  # the first token of a document has no label, but is no padding
    return ids[real]


def keeps_documents_apart(model: Any) -> bool:
    """Whether a document packed behind another one is left alone by it, when only its positions say where it begins.

    Seen on the model itself: a document behind two different ones must get the same logits, up to a thousandth of what they differ
    by when all is one document. As in training with `Trainer`, there is no cache and no attention mask.
    """
    first = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 9]])
    ids = torch.cat((first, first[:1].expand(2, -1)), 1) % model.get_input_embeddings().weight.shape[0]
    joined = torch.arange(8)[None].expand(2, -1)
    with evaluating(model):
        apart, together = (_influence(model, ids, positions) for positions in (joined % 4, joined))
    return apart <= 1e-3 * together


def _influence(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> float:
    """How much the logits of the second half of two rows differ."""
    device = input_device(model)
    logits = model(input_ids=ids.to(device), position_ids=positions.to(device), use_cache=False).logits[:, ids.shape[1] // 2 :]
    return (logits[0] - logits[1]).abs().max().item()


def separate_documents(model: Any) -> RemovableHandle | None:
    """Make a model keep packed documents apart whose family does not look at the positions for it (OPT, GPT-OSS).

    A hook on this instance gives the decoder the mask that transformers makes from the positions for the other families, whenever it
    is called with positions, without a mask and without a cache.

    Returns:
        the handle that removes the hook; None where the model keeps documents apart already.

    Raises:
        ValueError: the model does not keep documents apart in this way either. It is unchanged then.
    """
    if keeps_documents_apart(model):
        return None
    handle = model.get_decoder().register_forward_pre_hook(DocumentMasks(), with_kwargs=True)
    if not keeps_documents_apart(model):
        handle.remove()
        raise ValueError(
            f"packed documents see each other in {type(model).__name__} with attention {model.config._attn_implementation!r}: "
            "pack without boundaries, or use another attn_implementation"
        )
    return handle


class DocumentMasks:
    """Before a decoder runs on packed documents: the mask that follows from their positions."""

    def __call__(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        kwargs = dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs
        if kwargs.get("attention_mask") is None and cache_in(kwargs) is None and kwargs.get("position_ids") is not None:
            kwargs["attention_mask"] = self._masks(decoder, **kwargs)
        return (), kwargs

    def _masks(self, decoder: Any, position_ids: torch.Tensor, input_ids: Any = None, inputs_embeds: Any = None, **rest: Any) -> Any:
        shape = input_ids.shape if inputs_embeds is None else inputs_embeds.shape[:2]
        like = decoder.get_input_embeddings().weight.new_empty(*shape, 0)
        return create_masks_for_generate(decoder.config, like, None, None, position_ids)
