"""Perplexity of a model in memory: any protocol, several lengths, several positional encodings side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from ...encodings.options import count as check_count
from ...variants import STOCK, Encodings, plan_of
from ..corpus import BosRule
from ..models import check_live, check_tokenizer, encoded, live_name, load, load_tokenizer
from ..processes import Processes
from ..token_nll import Progress
from .documents import Documents
from .evaluator import Evaluator
from .key_tokens import KeyTokens
from .measurement import Measurement, Texts
from .protocols import create_protocol
from .result import Result
from .run import Run, check_lengths


@overload
def perplexity(model: Any, tokenizer_or_ids: Any = ..., documents: Any = ..., *, encodings: None = ..., **how: Any) -> Result: ...


@overload
def perplexity(model: Any, tokenizer_or_ids: Any = ..., documents: Any = ..., *, encodings: Encodings, **how: Any) -> dict[str, Result]: ...


def perplexity(
    model: Any,
    tokenizer_or_ids: Any = None,
    documents: Documents | None = None,
    *,
    lengths: Sequence[int] = (1024, 2048, 4096),
    encodings: Encodings | None = None,
    protocol: str = "prefix",
    bos: BosRule = "auto",
    count: int | None = None,
    min_tokens: int | None = None,
    max_tokens: int | None = None,
    key_tokens: KeyTokens | bool = False,
    evaluator: Any = None,
    one_forward: bool | None = None,
    pass_tokens: int | None = None,
    batch_tokens: int = 8192,
    last_k: int = 256,
    chunk: int = 1024,
    journal: str | os.PathLike | None = None,
    settings: dict[str, Any] | None = None,
    progress: Progress | None = None,
    **protocol_options: int,
) -> Result | dict[str, Result]:
    """Perplexity of documents at each context length in `lengths`: exp of the mean nats of all scored predictions, each weighted equally.

        perplexity(model, ids, lengths=[1024, 4096])
        perplexity(model, tokenizer, texts, lengths=[8192], protocol="sliding", stride=512)
        perplexity(model, tokenizer, texts, lengths=[8192, 16384], encodings={"stock": {}, "yarn": {"factor": 2.0}})

    A causal model predicts the same whatever follows, so the protocols `prefix` and `decoded` take the whole curve from one pass at the
    longest length; where stock transformers makes predictions depend on what follows (`rope_type` "dynamic" and "longrope"), each length
    gets its own pass. The model's mode and gradients are left alone. Under `torchrun` or `accelerate launch` the processes share the
    documents and all return the same result.

    Args:
        model: a causal language model, patched or not, or the hub id or path of one.
        tokenizer_or_ids: the tokenizer of texts, or token ids: [L] or [1, L], `Document`s, or a list of them. None with a hub id or path
            takes its tokenizer.
        documents: texts, or rows with a column "text" (any iterable, a streamed dataset too), where a tokenizer was given.
        lengths: context lengths in tokens including BOS; any order, each at least 2.
        encodings: None measures the model as it is; a name, names, or names with their options (`layers` among them) patch it with each
            in turn ("stock": as it was) and unpatch it. A name may bring options, "yarn:factor=4", so that one encoding can be there twice.
        protocol: "prefix", "sliding", "sliding_all", "fixed_target", "decoded", "disjoint" or "offset"; their classes in
            `hf_posenc.evaluation.perplexity.protocols` say what they score, and name their options.
        bos: whether text starts with BOS: "auto" does what the tokenizer does.
        count: use so many documents; default all.
        min_tokens: skip documents with fewer tokens. Default: what the protocol needs for every point of the curve to see the same text.
            With a smaller value, a document shorter than L counts with the tokens it has (`prefix`, `sliding`, `disjoint`).
        max_tokens: cut documents to their first tokens.
        key_tokens: count key tokens apart (`Score.longppl`); True for the defaults of `KeyTokens`.
        evaluator: what chooses the key tokens: a hub id, a path or "demo", which is in memory only until all texts are read; or a loaded
            model and its tokenizer, (model, tokenizer), another one than that of the measured model if it likes; or an `Evaluator`.
            Default: the stock model, as far as it was trained.
        one_forward: override the choice between one pass for the whole curve and one pass for each length.
        pass_tokens: run an input so many tokens at a time through the KV cache, in memory that grows with the cache only. Default: inputs
            of more than 16,384 tokens, 2,048 at a time, wherever decoding equals evaluation.
        batch_tokens: run equal windows together up to so many tokens.
        last_k: how many predictions before L make `Score.last_nats`.
        chunk: tokens per chunk of output layer and loss; memory grows with `chunk` x vocabulary, not with L x vocabulary.
        journal: folder that keeps what is finished, so that the same call goes on after it was killed. Delete it when the result is safe.
        settings: recorded in the result as they are.
        progress: called with a number of tokens as they are done.
        protocol_options: `stride=`, `target=`: options of the protocol.

    Returns:
        a `Result`; with `encodings`, one for each name.

    Raises:
        CorpusError: no document is long enough.
        ValueError: a number of tokens or documents below 1, a length that the protocol or the model's position table does not have, an
            unknown protocol or option, text without a tokenizer or with that of another model, an encoding that changes nothing.
        FloatingPointError: a loss is infinite or not a number; the message says where.
        Interrupted: Ctrl-C; it carries what was finished.
    """
    given = {"count": count, "min_tokens": min_tokens, "max_tokens": max_tokens, "pass_tokens": pass_tokens}
    for name, value in {**given, "batch_tokens": batch_tokens, "last_k": last_k, "chunk": chunk}.items():
        if value is not None:
            check_count(name, value)
    model, tokenizer, documents = loaded(model, tokenizer_or_ids, documents)
    asked = create_protocol(protocol, **protocol_options)
    longest = check_lengths(asked, lengths)[-1]
    plan = {live_name(model): {}} if encodings is None else plan_of(encodings)
    if encodings is not None:
        check_live(model, plan)
    shape: dict[str, Any] = {
        "one_forward": one_forward,
        "pass_tokens": pass_tokens,
        "batch_tokens": batch_tokens,
        "last_k": last_k,
        "chunk": chunk,
    }
    measurement = Measurement(
        Texts.of(documents, tokenizer, bos, max_tokens, count, min_tokens, asked, longest),
        lambda patched: Run.of(patched, asked, lengths, **shape),
        evaluator_of(model, key_tokens, evaluator, journal),
        Processes(),
        None if journal is None else Path(journal),
        progress,
        settings or {},
    )
    measurement.find_keys()
    results = {}
    for name, options in plan.items():
        with encoded(model, STOCK if encodings is None else name, options):
            results[name] = measurement.measure(model, name, options)
    return next(iter(results.values())) if encodings is None else results


def loaded(model: Any, tokenizer_or_ids: Any, documents: Documents | None) -> tuple[Any, Any, Any]:
    """The model, its tokenizer (None for token ids) and the documents, from what the caller gave."""
    tokenizer = tokenizer_or_ids
    if isinstance(model, (str, os.PathLike)):
        tokenizer = load_tokenizer(str(model)) if tokenizer is None else tokenizer
        model = load(str(model))
    if callable(tokenizer):
        if documents is None:
            raise ValueError("a tokenizer needs texts: perplexity(model, tokenizer, texts)")
        check_tokenizer(tokenizer, model)
    elif tokenizer is not None and documents is not None:
        raise ValueError("documents go with a tokenizer; token ids take their place: perplexity(model, ids)")
    else:
        tokenizer, documents = None, tokenizer if documents is None else documents
    if documents is None:
        raise ValueError("nothing to measure: perplexity(model, tokenizer, texts) or perplexity(model, ids)")
    # each encoding reads the documents again
    return model, tokenizer, list(documents) if isinstance(documents, Iterator) else documents


def evaluator_of(model: Any, key_tokens: KeyTokens | bool, source: Any, folder: str | os.PathLike | None) -> Evaluator | None:
    """What chooses the key tokens; None where they are not asked for."""
    if isinstance(source, Evaluator):
        if isinstance(key_tokens, KeyTokens):
            raise ValueError("an Evaluator has its rule: give the KeyTokens to it, and leave key_tokens= out")
        return source
    rule = key_tokens if isinstance(key_tokens, KeyTokens) else KeyTokens()
    if source is not None:
        return Evaluator.of(source, rule, folder)
    return Evaluator.stock(model, rule, folder) if key_tokens else None
