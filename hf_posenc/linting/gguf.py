"""A GGUF: what llama.cpp makes of its metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..exporting.engines.llama_cpp import READS_TABLE, SCALING, LlamaCpp, unread
from ..exporting.gguf_file import LAYOUTS, TABLE, architecture_of, geometry_of_gguf, open_gguf, said
from ..exporting.schemes import magnitude
from .case import Served
from .finding import ERROR, WARNING, Finding

BASE = "rope.freq_base"
KIND, FACTOR, ORIGINAL, ATTENTION = (f"{SCALING}{name}" for name in ("type", "factor", "original_context_length", "attn_factor"))
AGAIN = "`hf-posenc export BASE.gguf --encoding ... --output NEW.gguf` writes the keys of a GGUF of the model as it came"


def examine(path: Path) -> tuple[list[Served], list[Finding]]:
    """What llama.cpp computes, and what is wrong.

    Raises:
        ValueError: it is no GGUF, or of a model without one rotation.
    """
    reader = open_gguf(path)
    architecture, geometry = architecture_of(reader), geometry_of_gguf(reader)
    fields = {key.removeprefix(f"{architecture}."): said(reader, key) for key in reader.fields if key.startswith(f"{architecture}.")}
    tables = [torch.from_numpy(tensor.data.copy()).float() for tensor in reader.tensors if tensor.name == TABLE]
    read = architecture in READS_TABLE
    try:
        served = Served(LlamaCpp.name, "", LlamaCpp().read(fields, geometry, tables[0] if tables and read else None))
    except (ValueError, KeyError) as error:
        served = Served(LlamaCpp.name, "", None, str(error))
    return [served], [*findings(fields, bool(tables) and not read, architecture)]


def findings(fields: Mapping[str, Any], ignored: bool, architecture: str) -> Iterator[Finding]:
    """What is wrong in metadata, whose names are without the architecture; `ignored`: there is a table that is not looked at."""
    kind, factor, length = fields.get(KIND, "linear"), fields.get(FACTOR) or 1.0, fields["context_length"]
    if BASE not in fields:
        yield Finding("theta-lost", WARNING, BASE, "it is not there, and llama.cpp takes 10000", AGAIN)
    if ignored:
        what = f"the file has one, and llama.cpp is not known to look at it in {architecture!r}: the frequencies are those of {BASE}"
        yield Finding("table", ERROR, TABLE, what, "name the scheme by keys, or serve it elsewhere")
    if kind == "longrope":
        yield Finding("by-length", WARNING, KIND, "the table is chosen by the length that is served (-c), not by that of the text", AGAIN)
    if kind != "yarn":
        return
    if ORIGINAL not in fields:
        what = f"'yarn' without it: llama.cpp takes context_length, {length}, which may be the stretched one"
        yield Finding("native-length", WARNING, ORIGINAL, what, AGAIN)
    elif length != fields[ORIGINAL] and abs(length / fields[ORIGINAL] - factor) > 0.01 * factor:
        what = f"the factor is {factor:g}, but the lengths say {length / fields[ORIGINAL]:g}: {length} and {fields[ORIGINAL]}"
        yield Finding("scaling", ERROR, FACTOR, what, AGAIN)
    for key, instead in unread(factor).items() if architecture in LAYOUTS else ():
        if abs(fields.get(key, instead) - instead) > 1e-4:
            what = f"it is {fields[key]:.4g}, and llama.cpp does not look at it in {architecture!r}: it takes {instead:.4g}"
            yield Finding("unread-key", ERROR, key, what, AGAIN)
    own = magnitude(factor)
    if own != 1 and abs(fields.get(ATTENTION, 1.0) - own) < 1e-4:
        what = f"it is 0.1 ln {factor:g} + 1, by which llama.cpp multiplies it again: {own * own:.4g} on cos and sin, not {own:.4g}"
        yield Finding("double-scaling", ERROR, ATTENTION, what, f"write 1.0; {AGAIN}")
