"""Perplexity against context length, protocol `prefix` (YaRN tables 1-2, Peng et al. 2023, arXiv 2309.00071)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch

from ..encodings.rotary.rope import BY_LENGTH
from .corpus import BosRule, CorpusError, Document, Text, adds_bos, encode
from .measure import Meter, versions
from .models import inspect_model
from .result import Bucket, Result, Score
from .token_nll import Progress, find_head, input_device, token_nll

Documents = str | torch.Tensor | Document | Text | Sequence["str | torch.Tensor | Document | Text"]


def perplexity(
    model: Any,
    documents: Documents,
    lengths: Sequence[int],
    *,
    tokenizer: Any = None,
    bos: BosRule = "auto",
    min_tokens: int | None = None,
    last_k: int = 256,
    chunk: int = 1024,
    one_forward: bool | None = None,
    encoding: str = "stock",
    options: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Perplexity of the first L tokens of each document, for every L in `lengths`, in one forward pass per document.

    At L it is exp of the mean nats of the L - 1 predictions within the first L tokens, every token of every document weighted
    equally. A causal model gives the same predictions whatever follows, so one pass at the longest L holds the whole curve; where
    stock transformers makes them depend on what follows (`rope_type` "dynamic" and "longrope"), each length gets its own pass.

    Args:
        model: a causal language model, patched or not; its mode and its gradients are left alone.
        documents: one or several: text (needs `tokenizer`) or token ids [L] or [1, L] (used as they are).
        lengths: the values of L, in tokens including BOS; any order, each at least 2.
        tokenizer: turns text into tokens.
        bos: whether text starts with BOS: "auto" does what the tokenizer does.
        min_tokens: skip documents with fewer tokens. Default: the longest L, so that every point of the curve sees the same
            documents. With a smaller value, a document shorter than L counts with the tokens it has.
        last_k: how many predictions before L make `Score.last_nats`.
        chunk: tokens per chunk of output layer and loss; memory grows with `chunk` x vocabulary, not with L x vocabulary.
        one_forward: override the choice between one pass for the whole curve and one pass for each length.
        encoding, options, settings: recorded in the result as they are.
        progress: called with a number of tokens as they are done; `tokens_to_run` gives the total.

    Raises:
        CorpusError: no document has `min_tokens` tokens.
        ValueError: a length below 2 or beyond the model's position table; text without a tokenizer.
        FloatingPointError: a loss is infinite or not a number; the message says where.
    """
    lengths = check_lengths(lengths)
    found = [as_document(document, tokenizer, bos, index) for index, document in enumerate(as_list(documents))]
    used, skipped = select(found, min_tokens or lengths[-1])
    check_position_table(model, lengths[-1])
    if one_forward is None:
        one_forward = not is_length_dependent(model)

    head = find_head(model, used[0].input_ids)
    with Meter(input_device(model)) as meter:
        nll = all_nll(model, used, lengths, one_forward, head, chunk, progress)
    tokens: int = tokens_to_run(used, lengths, one_forward)
    return Result(
        protocol="prefix",
        forward="one per document" if one_forward else "one per document and length",
        head="full logits" if head is None else "chunked",
        encoding=encoding,
        options=options or {},
        **describe_model(model),
        tokenizer=None if tokenizer is None else tokenizer.name_or_path,
        bos="as given" if tokenizer is None else f"{bos} ({'added' if adds_bos(tokenizer, bos) else 'none added'})",
        documents=[{"name": document.name, "tokens": len(document), "sha256": document.sha256} for document in used],
        skipped=skipped,
        cache=False,
        versions=versions(),
        scores=[score(nll[length], used, length, last_k) for length in lengths],
        last_k=last_k,
        buckets=buckets(nll[lengths[-1]]),
        seconds=meter.seconds,
        tokens_per_second=tokens / meter.seconds,
        peak_memory=meter.peak,
        peak_memory_kind=meter.kind,
        settings=settings or {},
    )


def check_lengths(lengths: Sequence[int]) -> list[int]:
    """The lengths in ascending order, each once."""
    if not lengths or min(lengths) < 2:
        raise ValueError(f"lengths must be at least 2 tokens (one to see, one to predict), got {list(lengths)}")
    return sorted(set(lengths))


def as_list(documents: Documents) -> list[Any]:
    """A single document as a list of one."""
    return [documents] if isinstance(documents, (str, torch.Tensor, Document, Text)) else list(documents)


def as_document(source: Any, tokenizer: Any, bos: BosRule, index: int) -> Document:
    """Text or token ids as a `Document`."""
    if isinstance(source, Document):
        return source
    if isinstance(source, torch.Tensor):
        if source.squeeze().ndim != 1:
            raise ValueError(f"input_ids must be one document, [L] or [1, L], got {list(source.shape)}; pass several as a list")
        return Document(f"document {index}", source.squeeze().cpu())
    if tokenizer is None:
        raise ValueError("text needs a tokenizer: perplexity(model, text, lengths, tokenizer=tokenizer)")
    return encode(tokenizer, source if isinstance(source, Text) else Text(f"document {index}", source), bos)


def select(documents: list[Document], min_tokens: int) -> tuple[list[Document], list[dict[str, Any]]]:
    """The documents with at least `min_tokens` (and 2) tokens, and a record of the others."""
    need = max(min_tokens, 2)
    used = [document for document in documents if len(document) >= need]
    skipped = [document for document in documents if len(document) < need]
    if not used:
        longest = max(map(len, documents), default=0)
        raise CorpusError(
            f"the longest of {len(documents)} documents has {longest:,} tokens and {need:,} are needed: "
            "ask for shorter lengths, or bring longer text"
        )
    return used, [{"name": each.name, "tokens": len(each), "reason": f"fewer than {need} tokens"} for each in skipped]


def is_length_dependent(model: Any) -> bool:
    """Whether the config's own `rope_parameters`, flat or nested per layer type, name a `rope_type` that stock transformers computes
    from the length of the whole input, so that a prefix of a long pass is not a short pass.
    """
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    flat_and_nested = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return any(each.get("rope_type") in BY_LENGTH for each in flat_and_nested)


def check_position_table(model: Any, length: int) -> None:
    """Refuse a length beyond a table of learned positions here, because on CUDA the lookup itself would abort the process."""
    rows = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokens = model.get_input_embeddings()
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding) and module is not tokens]
    if rows is not None and length > rows and any(0 <= table.num_embeddings - rows <= 2 for table in tables):
        raise ValueError(
            f"the model has a table of {rows:,} positions and {length:,} were asked for: ask for shorter lengths, or patch it first"
        )


def tokens_to_run(documents: Iterable[Document], lengths: Sequence[int], one_forward: bool = True) -> int:
    """How many tokens the forward passes will see in all."""
    passes = [max(lengths)] if one_forward else lengths
    return sum(min(len(document), length) for document in documents for length in passes)


def all_nll(
    model: Any, documents: list[Document], lengths: list[int], one_forward: bool, head: Any, chunk: int, progress: Progress | None
) -> dict[int, list[torch.Tensor]]:
    """For each length, the nats of the predictions of each document.

    Ascending lengths outside, documents inside: stock dynamic NTK only ever grows its base once past the native length.
    """
    nll: dict[int, list[torch.Tensor]] = {}
    for length in lengths[-1:] if one_forward else lengths:
        nll[length] = [checked(token_nll(model, each.input_ids[:length], head, chunk, progress), each, length) for each in documents]
    return nll if not one_forward else {length: [each[: length - 1] for each in nll[lengths[-1]]] for length in lengths}


def checked(nll: torch.Tensor, document: Document, length: int) -> torch.Tensor:
    """The same nats, or `FloatingPointError` with the first position where they are not finite."""
    bad = (~nll.isfinite()).nonzero()
    if len(bad):
        position = int(bad[0]) + 1
        raise FloatingPointError(
            f"the loss of token {position} of {document.name} is {nll[position - 1].item()} in a pass of {length} tokens "
            f"({len(bad)} of {len(nll)} predictions are not finite)"
        )
    return nll


def score(nll: list[torch.Tensor], documents: list[Document], length: int, last_k: int) -> Score:
    """Pool the nats of all documents at one length."""
    joined = torch.cat(nll).double()
    nats = joined.mean().item()
    sizes = [document.scored_bytes(length) for document in documents]
    total_bytes = 0 if None in sizes else sum(size for size in sizes if size is not None)
    last = [each[-last_k:] for each in nll if len(each) == length - 1]
    return Score(
        length=length,
        tokens_scored=len(joined),
        nats=nats,
        perplexity=math.exp(nats) if nats < 700 else math.inf,
        bits_per_byte=joined.sum().item() / math.log(2) / total_bytes if total_bytes else None,
        last_nats=torch.cat(last).double().mean().item() if last else None,
        standard_error=standard_error(nll),
    )


def standard_error(nll: list[torch.Tensor]) -> float | None:
    """Standard error of the token-weighted mean over documents, a ratio estimate (Cochran 1977, eq. 2.46)."""
    count = len(nll)
    if count < 2:
        return None
    sums = torch.stack([each.double().sum() for each in nll])
    sizes = torch.tensor([len(each) for each in nll], dtype=torch.float64)
    residuals = sums - sizes * sums.sum() / sizes.sum()
    return (residuals.square().sum() * count / (count - 1)).sqrt().item() / sizes.sum().item()


def buckets(nll: list[torch.Tensor]) -> list[Bucket]:
    """Nats by position, in ranges that double: 1 ... 255, 256 ... 511, 512 ... 1023 and so on."""
    longest = max(map(len, nll)) + 1
    edges = [1, *(256 << step for step in range(longest.bit_length()) if 256 << step < longest), longest]
    pooled = [torch.cat([each[start - 1 : stop - 1] for each in nll]).double() for start, stop in pairwise(edges)]
    return [Bucket(start, stop, len(each), each.mean().item()) for (start, stop), each in zip(pairwise(edges), pooled, strict=True)]


def describe_model(model: Any) -> dict[str, Any]:
    """What is live in the model: the fields of `Result` that say so."""
    fingerprint, state = inspect_model(model)
    return {
        "model": model.config.name_or_path or type(model).__name__,
        "fingerprint": fingerprint,
        "state": state,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(input_device(model)),
        "attention": str(model.config.get_text_config()._attn_implementation),
    }
