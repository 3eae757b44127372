"""`hf_posenc.lint`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig
from transformers.utils import CONFIG_NAME

from ..exporting import ENGINES
from . import gguf, served, written
from .case import TRANSFORMERS, Case, Served
from .documents import GGUF, Document, read
from .finding import ERROR, SEVERITIES, Finding
from .mending import mended, write_mended
from .report import Lint


def lint(
    path_or_config: str | os.PathLike | Mapping[str, Any] | PretrainedConfig, engines: Sequence[str] = (), *, fix: bool = False
) -> Lint:
    """What engines will make of a configuration, and what is wrong with it; no weights are read.

    Args:
        path_or_config: a checkpoint, a config.json, a GGUF, a training file of Axolotl or LLaMA-Factory, a hub id, a configuration, or its
            entries.
        engines: "transformers", "vllm", "sglang", "llama.cpp", "mlx"; default all.
        fix: write config.json with what is certain, in one step; other entries stay as they are, in their order.

    Raises:
        ValueError: a file that is none of these, an engine that there is not, or nothing that could be written.
        OSError: there is nothing of that name, or it cannot be written.
    """
    asked = [ENGINES.current(name) for name in engines] or list(ENGINES)
    document = read(path_or_config)
    if fix and (document.kind != CONFIG_NAME or document.path is None):
        raise ValueError(f"only a {CONFIG_NAME} on this machine is mended: {document.name} is to be mended by hand")
    found, done = examine(document, asked), list[Finding]()
    while fix and (entries := mended(found.document.entries, found.findings)) != found.document.entries:
        done += found.mendable
        found = examine(dataclasses.replace(document, entries=entries), asked)  # what was hidden by something else comes to light
    if done and document.path is not None:
        write_mended(document.path, found.document.entries)
    return dataclasses.replace(found, mended=done)


def examine(document: Document, asked: Sequence[str]) -> Lint:
    """What is made of a document, and what is wrong, the worst first."""
    rows, found = gguf.examine(document.path) if document.kind == GGUF and document.path is not None else of_config(document, asked)
    return Lint(document, rows, sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def of_config(document: Document, asked: Sequence[str]) -> tuple[list[Served], list[Finding]]:
    """What is made of a configuration, and what is wrong."""
    case = Case.of(document.entries)
    if case.live:
        return [], list(ours(case))
    rows = list(case.serve(list(dict.fromkeys([TRANSFORMERS, *asked]))))
    found = [*document.findings, *map(Finding.of, case.faults)]
    found += [finding for rule in written.RULES for finding in rule(case)]
    found += served.one_name(case) if served.MLX in asked else ()
    found += [*served.agreement(case, rows, found), *served.no_rotation(case), *served.by_length(case), *served.phases(case, rows)]
    return rows, [placed(finding, case, document.kind == CONFIG_NAME) for finding in found]


def ours(case: Case) -> Iterator[Finding]:
    """A checkpoint of this package, which no engine reads."""
    for each in case.live:
        what = f"it has {each}, which is loaded after `import hf_posenc`, and by no engine"
        yield Finding("hf_posenc", ERROR, "positional_encoding", what, served.EXPORT.format("ENGINE"))


def placed(finding: Finding, case: Case, mendable: bool) -> Finding:
    """With the places of the whole file; without them where the file is another than was examined."""
    mend = {case.place + place: value for place, value in finding.mend.items()} if mendable else {}
    return dataclasses.replace(finding, mend=mend)
