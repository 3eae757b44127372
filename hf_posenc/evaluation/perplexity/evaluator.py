"""The model that says which tokens of a text are key tokens."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig
from transformers.utils import CONFIG_NAME

from ...files import replace_atomically
from ...variants import STOCK
from ..corpus import Document, Text, encode
from ..demo_model import resolve_model
from ..models import check_tokenizer, digest, inspect_model, live_encodings, load, load_tokenizer, weights_digest
from ..token_nll import Progress
from .key_tokens import KeyTokens, carried


@dataclass
class Evaluator:
    """Chooses the key tokens of documents. It may have another tokenizer than the model that is measured: text is what they share.

        with Evaluator.of("meta-llama/Llama-3.1-8B") as evaluator:
            keys = evaluator.find(document)

    A model that is named by its id or path is loaded when the first text needs it, and let go of at the end of the block. What was found
    for a text is kept in memory, and with a folder on disk: a later call, with another model to measure, does not load the evaluator.

    Args:
        name: for reports.
        rule: which tokens count.
        tokenizer: None reads the tokens of documents as they are.
        load: makes the model.
        identity: tells it from any other.
        folder: what is found is kept in.
    """

    name: str
    rule: KeyTokens
    tokenizer: Any
    load: Callable[[], Any]
    identity: list[Any]
    folder: Path | None = None
    model: Any = None
    found: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        source: Any,
        rule: KeyTokens | None = None,
        folder: str | os.PathLike | None = None,
        device: str = "auto",
    ) -> Evaluator:
        """An evaluator.

        Args:
            source: a hub id, path or "demo"; or a loaded model and its tokenizer.
            rule: the published one by default; long windows are as long as the configuration of the evaluator says that it reads.
            folder: to keep what is found in.
            device: of a model that is named.
        """
        rule, kept = rule or KeyTokens(), None if folder is None else Path(folder)
        if not isinstance(source, (str, os.PathLike)):
            model, tokenizer = source
            check_tokenizer(tokenizer, model)
            name = model.config.name_or_path or type(model).__name__
            return cls(name, rule.of(context(model.config)), tokenizer, lambda: model, identity_of(model), kept)
        path = resolve_model(str(source))
        tokenizer, config = load_tokenizer(path), AutoConfig.from_pretrained(path)  # the first names what is not there
        identity = [path, getattr(config, "_commit_hash", None), *on_disk(Path(path))]
        return cls(str(source), rule.of(context(config)), tokenizer, partial(load, path, device=device), identity, kept)

    @classmethod
    def stock(cls, model: Any, rule: KeyTokens | None = None, folder: str | os.PathLike | None = None) -> Evaluator:
        """The model that is measured, before it is patched; it never reads more tokens than it was trained for.

        Raises:
            ValueError: it is patched.
        """
        if live_encodings(model):
            raise ValueError(
                "key tokens are chosen by the stock model, and this one is patched: unpatch it, and name its encoding in encodings="
            )
        rule = (rule or KeyTokens()).of(trained_length(model.config))
        return cls(STOCK, rule, None, lambda: model, identity_of(model), None if folder is None else Path(folder))

    @property
    def settings(self) -> dict[str, Any]:
        """What its choice depends on."""
        return {**asdict(self.rule), "evaluator": self.name, "identity": self.identity}

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.model = None

    def find(self, document: Document, progress: Progress | None = None) -> torch.Tensor:
        """[T] bool, True at the key tokens of a document.

        Raises:
            ValueError: the evaluator has a tokenizer, and it is not known which text the tokens of the document stand for.
        """
        if (known := self.found.get(document.sha256)) is None:
            read = self.read(document)
            keys = self.kept(read, progress)
            known = self.found[document.sha256] = keys if read is document else carried(keys, read, document)
        return known

    def read(self, document: Document) -> Document:
        """The same text in the tokens of the evaluator."""
        if self.tokenizer is None:
            return document
        if document.text is None or document.spans is None:
            raise ValueError(f"an evaluator reads text: give {document.name} as text, with a fast tokenizer, which keeps offsets")
        found = encode(self.tokenizer, Text(document.name, document.text))
        if found.spans is None:
            raise ValueError(f"the tokenizer of the evaluator {self.name} keeps no offsets: take its fast one")
        return found

    def kept(self, document: Document, progress: Progress | None) -> torch.Tensor:
        """Key tokens of a document of its own tokens, from the folder where they are there."""
        file = None if self.folder is None else self.folder / f"keys-{document.sha256}-{digest(self.settings)}.npy"
        if file is not None and file.exists():
            return torch.from_numpy(np.load(file))
        if self.model is None:
            self.model = self.load()
        keys = self.rule.find(self.model, document, progress)
        if file is not None:
            replace_atomically(file, lambda partial: np.save(partial, keys.numpy()))
        return keys


def identity_of(model: Any) -> list[Any]:
    """Weights, precision and live encoding."""
    return [weights_digest(model), str(model.dtype), inspect_model(model)[0]]


def on_disk(folder: Path) -> list[Any]:
    """Names, sizes and times of the files of a model; none for a hub id."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob(CONFIG_NAME)]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(files)]


def context(config: Any) -> int | None:
    """The tokens that a model reads, by its configuration; None where it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def trained_length(config: Any) -> int | None:
    """The context that a model was trained for, in tokens: that before its RoPE was scaled, where the configuration says so."""
    scaled = (getattr(config.get_text_config(), "rope_parameters", None) or {}).get("original_max_position_embeddings")
    return scaled or context(config)
