"""From a stream of documents to a result: this process's share of them, what the journal knows already, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...variants import name_of
from ..corpus import BosRule, Document, adds_bos
from ..journal import Journal
from ..measure import versions
from ..models import check_tokens, digest, inspect_model, weights_digest
from ..processes import Processes
from ..result import Interrupted
from ..token_nll import Head, Progress, find_head, input_device
from .documents import Documents, peeked, shared, stream, usable
from .evaluator import Evaluator
from .protocols import Protocol
from .result import Result
from .run import Run
from .tally import Record, pool, pool_buckets

Chosen = Iterator[tuple[Document, str]]


@dataclass
class Texts:
    """Which documents are scored.

    Args:
        documents: what to read them from, again for each encoding.
        tokenizer, bos, max_tokens: how they are read (`documents.stream`).
        count: how many are used; None for all.
        need: tokens that a document must have.
        scored: tokens at the beginning of a document that are scored; None for all.
    """

    documents: Documents
    tokenizer: Any
    bos: BosRule
    max_tokens: int | None
    count: int | None
    need: int
    scored: int | None

    @classmethod
    def of(
        cls,
        documents: Documents,
        tokenizer: Any,
        bos: BosRule,
        max_tokens: int | None,
        count: int | None,
        min_tokens: int | None,
        protocol: Protocol,
        longest: int,
    ) -> Texts:
        """Those that a protocol scores at lengths up to `longest`; with `min_tokens`, shorter ones too."""
        need = max(2, min_tokens or protocol.tokens_needed(longest))
        return cls(documents, tokenizer, bos, max_tokens, count, need, None if protocol.whole_documents else longest)

    def choose(self) -> tuple[Document, Chosen]:
        """The first document that is used, and all of them, each with the reason to skip it."""
        return peeked(usable(stream(self.documents, self.tokenizer, self.bos, self.max_tokens), self.need, self.count))

    def find_keys(self, evaluator: Evaluator, processes: Processes, progress: Progress | None) -> dict[str, torch.Tensor]:
        """Key tokens of this process's documents, as far as they are scored, by their hashes."""
        with evaluator:
            mine = (document for _, document, reason in shared(self.choose()[1], processes) if not reason)
            return {document.sha256: evaluator.find(document.head(self.scored or len(document)), progress) for document in mine}

    @property
    def bos_rule(self) -> str:
        """The rule and what it came to, in words."""
        if self.tokenizer is None:
            return "as given"
        return f"{self.bos} ({'added' if adds_bos(self.tokenizer, self.bos) else 'none added'})"


@dataclass
class Measurement:
    """What one call of `perplexity` measures with each encoding.

    Args:
        texts: the documents.
        plan_run: the run that fits a (patched) model.
        evaluator: what chooses key tokens, or None.
        processes: those that share the documents.
        journal: folder of the journals, or None.
        progress: called with a number of tokens as they are done.
        settings: recorded in the result.
        keys: document -> its key tokens.
    """

    texts: Texts
    plan_run: Callable[[Any], Run]
    evaluator: Evaluator | None
    processes: Processes
    journal: Path | None
    progress: Progress | None
    settings: dict[str, Any]
    keys: dict[str, torch.Tensor] = field(default_factory=dict)

    def find_keys(self) -> None:
        """Have the evaluator choose the key tokens of this process's documents."""
        if self.evaluator is not None:
            self.keys = self.texts.find_keys(self.evaluator, self.processes, self.progress)

    def open_journal(self, model: Any, run: Run, encoding: str, first: Document) -> Journal[Record] | None:
        """That of this encoding; another model, encoding, text or way to score has another file."""
        if self.journal is None:
            return None
        settings = {
            "run": asdict(run),
            "protocol": run.protocol.name,
            "live": inspect_model(model),
            "weights": weights_digest(model),
            "dtype": str(model.dtype),
            "first": first.sha256,
            "keys": self.evaluator and self.evaluator.settings,
        }
        return Journal(self.journal / f"{name_of(encoding)}-{digest(settings)}", Record, self.processes.rank)

    def measure(self, model: Any, encoding: str, options: Mapping[str, Any]) -> Result:
        """Score all documents with the model as it is now.

        Raises:
            Interrupted: Ctrl-C; it carries what was finished.
        """
        run = self.plan_run(model)
        first, chosen = self.texts.choose()
        journal = self.open_journal(model, run, encoding, first)
        self.processes.wait()  # all have read the journal before one writes
        check_tokens(first, model)
        head = find_head(model, first.input_ids)
        records: list[Record] = []

        def result(found: list[Record], complete: bool) -> Result:
            about = {"encoding": name_of(encoding), "options": dict(options), "head": "full logits" if head is None else "chunked"}
            return self.result(model, run, sorted(found, key=lambda record: record.index), complete, **about)

        try:
            for record in self.score(model, run, head, chosen, journal):
                records.append(record)
        except KeyboardInterrupt:
            known = {each.index: each for each in [*(journal.read() if journal else ()), *records]}
            done = any(not each.reason for each in known.values())
            raise Interrupted(result(list(known.values()), complete=False) if done else None) from None
        return result(self.processes.gather(records), complete=True)

    def score(self, model: Any, run: Run, head: Head | None, chosen: Chosen, journal: Journal[Record] | None) -> Iterator[Record]:
        """A record of each document of this process's share, from the journal where it is there."""
        for index, document, reason in shared(chosen, self.processes):
            if reason:
                yield Record(index, document.name, len(document), document.sha256, reason)
                continue
            before = journal.done.get((index, document.sha256)) if journal else None
            if before is not None:
                if self.progress is not None:
                    self.progress(before.ran)
                yield before
                continue
            check_tokens(document, model)
            record = run.record(model, head, document, index, self.keys.get(document.sha256), self.progress)
            record.rank = self.processes.rank
            if journal is not None:
                journal.add(record)
            yield record

    def result(self, model: Any, run: Run, records: list[Record], complete: bool, **about: Any) -> Result:
        """What the records of all processes, in order, add up to."""
        used = [record for record in records if not record.reason]
        seconds = max(sum(r.seconds for r in used if r.rank == rank) for rank in {r.rank for r in used})
        peaks = [r.peak_memory for r in used if r.peak_memory is not None]
        fingerprint, state = inspect_model(model)
        return Result(
            protocol=run.protocol.name,
            protocol_options=asdict(run.protocol),
            forward=run.forward,
            fingerprint=fingerprint,
            state=state,
            model=model.config.name_or_path or type(model).__name__,
            tokenizer=None if self.texts.tokenizer is None else self.texts.tokenizer.name_or_path,
            bos=self.texts.bos_rule,
            documents=[{"name": r.name, "tokens": r.tokens, "sha256": r.sha256} for r in used],
            skipped=[{"name": r.name, "tokens": r.tokens, "reason": r.reason} for r in records if r.reason],
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(input_device(model)),
            attention=str(model.config.get_text_config()._attn_implementation),
            cache=run.cache,
            versions=versions(),
            scores=[pool(used, length) for length in run.lengths],
            last_k=run.last_k,
            buckets=pool_buckets(used, run.longest),
            seconds=seconds,
            tokens_per_second=sum(r.ran for r in used) / seconds,
            peak_memory=max(peaks, default=None),
            peak_memory_kind=used[0].peak_memory_kind,
            complete=complete,
            processes=self.processes.count,
            key_tokens=None if self.evaluator is None else self.evaluator.settings,
            settings=self.settings,
            **about,
        )
