"""Documents as blocks of one length, and a model that sees where one ends and the next begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.hooks import RemovableHandle

from ..attention.documents import hook_documents
from ..evaluation.corpus import CorpusError
from ..evaluation.token_nll import evaluating, input_device

IGNORED = -100
"""The label that the loss of transformers leaves out."""
AT_A_TIME = 1 << 20
"""Tokens that are packed together, or more where blocks are long."""
DOCUMENTS = (3, 4, 2)
"""Tokens of the documents on which a model shows that it keeps them apart."""


def pack(
    texts: Dataset,
    tokenizer: Any,
    block_size: int,
    num_proc: int | None = None,
    boundaries: bool = True,
    min_length: int = 1,
    max_length: int | None = None,
) -> Dataset:
    """Documents as blocks of exactly `block_size` tokens, EOS after each document. No token is there twice, and none is lost but what
    `min_length` and `max_length` leave out.

    Tokens and blocks are cached by `datasets`. Documents of about a million tokens, or 16 blocks, are packed at a time, so memory does
    not grow with the data; what is left of them is filled up with padding that no loss counts.

    With `boundaries`, positions start again at 0 with each document and with each block, which is how transformers tells packed
    documents apart: no token sees, or is predicted from, another document. In a stock model that holds without a KV cache and without
    an attention mask, as in `Trainer`, whose default is `use_cache=False`; `separate_documents` makes it hold beside a mask too, as in
    a patched model, and `check_isolation` shows whether it does. Without boundaries, blocks run across documents, as is usual in
    pretraining.

    Args:
        texts: rows with a column "text"; empty ones are skipped.
        tokenizer: of the model; without an EOS token the documents simply follow each other.
        block_size: tokens in a block.
        num_proc: processes that tokenize.
        boundaries: keep the documents of a block apart.
        min_length: leave out documents of fewer tokens, EOS included, and what is left of a document for the next block when it is
            shorter than that (Gao et al., 2024, arXiv:2410.02660, and its `pack --min_length`). From `block_size` on each block is a
            piece of one document.
        max_length: leave out documents of more tokens.

    Returns:
        rows of `block_size` tokens: "input_ids"; "labels", where -100 marks padding and, with `boundaries`, the first token of each
        document; and with `boundaries` "position_ids", which padding continues.

    Raises:
        CorpusError: not even one block is full, or no document is as long as is asked for; the message says how many tokens there are.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def tokenize(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        documents = [text for text in rows["text"] if text and text.strip()]
        ids = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"] if documents else []
        return {"input_ids": [document + end for document in ids]}

    def cut(rows: dict[str, list[list[int]]]) -> dict[str, np.ndarray]:
        documents = whole_ends(rows["input_ids"], block_size, min(min_length, block_size))
        return cut_blocks(list(documents), block_size, padding=(end or [0])[0], boundaries=boundaries)

    tokens = texts.map(tokenize, batched=True, remove_columns=texts.column_names, num_proc=num_proc, desc="tokenizing")
    tokens = of_length(tokens, min_length, max_length, num_proc)
    available = sum(map(len, tokens["input_ids"])) if len(tokens) < block_size else block_size
    if available < block_size:
        raise CorpusError(f"the text has {available:,} tokens, fewer than one block of {block_size:,}: bring more text or a smaller block")
    count = documents_of(tokens, max(AT_A_TIME, 16 * block_size))
    return tokens.map(cut, batched=True, batch_size=count, remove_columns=tokens.column_names, num_proc=num_proc, desc="packing")


def documents_of(tokens: Dataset, wanted: int) -> int:
    """How many documents have about so many tokens, going by the first 1,000."""
    lengths = [len(ids) for ids in tokens.take(1000)["input_ids"]]
    return max(1, wanted * len(lengths) // max(1, sum(lengths)))


def of_length(tokens: Dataset, min_length: int, max_length: int | None, num_proc: int | None) -> Dataset:
    """The documents from one length to another, both included; CorpusError where there is none."""
    if min_length == 1 and max_length is None:
        return tokens

    def fits(rows: dict[str, list[list[int]]]) -> list[bool]:
        return [min_length <= len(ids) and (max_length is None or len(ids) <= max_length) for ids in rows["input_ids"]]

    kept = tokens.filter(fits, batched=True, num_proc=num_proc, desc="choosing by length")
    if not len(kept):
        lengths = [len(ids) for ids in tokens["input_ids"]] or [0]
        asked = f"at least {min_length:,}" + (f" and at most {max_length:,}" if max_length else "")
        raise CorpusError(
            f"no document has {asked} tokens: the longest of {len(tokens):,} has {max(lengths):,}, the shortest {min(lengths):,}; choose "
            "another length, or bring other text"
        )
    return kept


def whole_ends(documents: Iterable[list[int]], size: int, min_length: int) -> Iterator[list[int]]:
    """Documents without the end that would go on in a next block with fewer than `min_length` tokens."""
    filled = 0
    for document in documents:
        end = filled + len(document)
        rest = end % size
        lost = rest if end > size and rest < min_length else 0
        yield document[: len(document) - lost]
        filled = rest - lost


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


def check_isolation(model: Any) -> None:
    """Prove that packed documents do not see each other, on the model itself.

    Three documents lie in a row, and one of them is exchanged: the logits of the others must stay, up to a thousandth of what they
    change by when all is one document. Tried as models are trained, without a KV cache: without an attention mask, and with one of
    ones, which many collators add. The model, the modes of its modules, its gradients and the random numbers to come are as before.

    Raises:
        ValueError: a document sees another, or the logits are not finite; the message names what leaked and what to do.
    """
    with evaluating(model), torch.random.fork_rng():
        together = _influence(model, torch.arange(sum(DOCUMENTS)), None).max()
        for given, mask in {"no attention mask": None, "an attention mask of ones": torch.ones(1, dtype=torch.long)}.items():
            apart = _influence(model, torch.cat([torch.arange(length) for length in DOCUMENTS]), mask)
            if (worst := apart.max()) > 1e-3 * together:
                changed, seen = divmod(int(apart.argmax()), len(DOCUMENTS))
                raise ValueError(
                    f"packed documents see each other in {type(model).__name__} with attention {model.config._attn_implementation!r}: "
                    f"with {given}, exchanging document {changed + 1} of a row changes the logits of document {seen + 1} by {worst:.1e}. "
                    "hf_posenc.training.separate_documents(model) keeps them apart where that is possible; where it is not, pack without "
                    "boundaries, or use another attn_implementation"
                )


def reads_documents(model: Any) -> bool:
    """Whether a model keeps apart the documents that a 2-D mask numbers (`DocumentMasks`), wherever their tokens lie."""
    with evaluating(model), torch.random.fork_rng():
        everywhere = torch.arange(sum(DOCUMENTS))
        numbers = torch.arange(2, 2 + len(DOCUMENTS)).repeat_interleave(torch.tensor(DOCUMENTS))
        together, apart = (_influence(model, everywhere, mask).max() for mask in (None, numbers))
    return bool(apart <= 1e-3 * together)


def _influence(model: Any, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """How much the logits of each document (columns) differ when each document (rows) is exchanged; 0 for its own."""
    device, owner = input_device(model), torch.arange(len(DOCUMENTS)).repeat_interleave(torch.tensor(DOCUMENTS))
    exchanged = torch.arange(-1, len(DOCUMENTS))[:, None] == owner
    ids = (torch.arange(2, 2 + len(owner)) + len(owner) * exchanged) % model.get_input_embeddings().weight.shape[0]
    given = {"input_ids": ids, "position_ids": positions.expand(len(ids), -1)} | (
        {} if mask is None else {"attention_mask": mask.expand(*ids.shape)}
    )
    logits = model(**{name: column.to(device) for name, column in given.items()}, use_cache=False)[0].float()  # or last hidden states
    if logits.shape[:-1] != ids.shape:
        raise ValueError(f"{type(model).__name__} says nothing of each token, so its documents cannot be told apart: try its `base_model`")
    if not logits.isfinite().all():
        raise ValueError(
            f"{type(model).__name__} has logits that are not finite: its weights are damaged, or its dtype is too narrow for them"
        )
    change = (logits[1:] - logits[:1]).abs().amax(-1).cpu()
    found = torch.stack([change[:, owner == document].amax(-1) for document in range(len(DOCUMENTS))], 1)
    return found.fill_diagonal_(0)


def separate_documents(model: Any) -> RemovableHandle:
    """Make a model keep packed documents apart, told by positions that begin again, with any 2-D attention mask or none.

    Some families do not look at the positions for it (OPT, GPT-OSS), and none does beside a mask, though it be all ones. A hook on this
    instance gives the decoder the mask that follows (`DocumentMasks`). A patched model has that hook already, until it is unpatched.

    Returns:
        the handle that removes the hook.

    Raises:
        ValueError: the model does not keep documents apart in this way either. It is unchanged then.
    """
    handle = hook_documents(model.get_decoder())
    try:
        check_isolation(model)
    except BaseException:
        handle.remove()
        raise
    return handle
