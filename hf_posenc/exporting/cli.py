"""`hf-posenc export`."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ..evaluation.demo_model import resolve_model
from ..evaluation.models import load, load_tokenizer
from ..files import write_atomically
from ..patching import patch
from ..tables import print_texts
from ..variants import STOCK, name_of, patch_options, read_plan
from .base import Export
from .checkpoint import own_weights, write_checkpoint
from .engines.llama_cpp import LlamaCpp
from .gguf_file import architecture_of, check_same_model, open_gguf, rotation_of_gguf, write_gguf
from .rotation import rotation_of
from .serving import compare
from .verb import export

GGUF, PATCH = ".gguf", ".json"
LENGTHS = (32, 256)
"""Tokens of the prompts that a server is compared on."""


def run(given: Namespace) -> None:
    """Print what the engine needs; write it, and compare with a server, where that is asked for."""
    check(given)
    label = given.encoding
    flags = {name: value for name in ("factor", "target_length") if (value := getattr(given, name)) is not None}
    ((label, options),) = read_plan([label], flags=flags).items()
    if given.model.endswith(GGUF):
        from_gguf(given, name_of(label), options)
    else:
        from_model(given, name_of(label), options)


def check(given: Namespace) -> None:
    """Raise ValueError where flags do not go together."""
    if given.model.endswith(GGUF) and (given.to or LlamaCpp.name) != LlamaCpp.name:
        raise ValueError(f"a GGUF is read by llama.cpp, not by {given.to}: leave --to out, or give the model")
    if not given.model.endswith(GGUF) and not given.to:
        raise ValueError("--to says which library is to serve the model: transformers, vllm, sglang, llama.cpp or mlx")
    if bool(given.check) != bool(given.server):
        raise ValueError("--check and --server URL go together")
    if given.check and (given.freeze_at or given.model.endswith(GGUF)):
        raise ValueError("--check compares with the model here: give it, with an encoding whose frequencies are those of any length")
    if given.gguf and not (given.output or "").endswith(GGUF):
        raise ValueError("--gguf BASE.gguf is what is written again, to --output NEW.gguf")
    if given.to == LlamaCpp.name and given.output and not (given.gguf or given.output.endswith(PATCH)):
        raise ValueError("llama.cpp needs a GGUF: give one of the base model, whose vocabulary is kept, by --gguf BASE.gguf")


def from_gguf(given: Namespace, name: str, options: dict[str, Any]) -> None:
    """Change the metadata of a GGUF."""
    reader = open_gguf(given.model)
    rotation = rotation_of_gguf(reader, "rope" if name == STOCK else name, given.freeze_at, **options)
    exported = LlamaCpp().export(rotation, architecture_of(reader))
    print(exported)
    if given.output:
        print(write_gguf(reader, exported, given.output))


def from_model(given: Namespace, name: str, options: dict[str, Any]) -> None:
    """Tell an engine of a model: only its configuration is read, where nothing needs the weights."""
    path, weights = resolve_model(given.model), given.check or bool(given.output and not given.output.endswith(PATCH))
    model = load(path, device="cpu") if weights else skeleton(path)
    if name != STOCK:
        patch(model, name, verify=weights, **patch_options(options))
    exported = export(model, given.to, freeze_at=given.freeze_at)
    print(exported)
    if given.output:
        print(write(model, exported, given))
    if given.check:
        check_server(model, path, given)


def skeleton(path: str) -> PreTrainedModel:
    """The model of a hub id or path, without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))


def write(model: PreTrainedModel, exported: Export, given: Namespace) -> Path:
    """A GGUF, the entries as JSON, or a checkpoint, by how the name of the output ends."""
    if given.output.endswith(PATCH):
        return write_atomically(given.output, json.dumps(exported.fields, indent=2) + "\n")
    if given.gguf:
        reader = open_gguf(given.gguf)
        check_same_model(reader, rotation_of(model, given.freeze_at))
        return write_gguf(reader, exported, given.output, own_weights(model))
    return write_checkpoint(model, exported, given.output)


def check_server(model: PreTrainedModel, path: str, given: Namespace) -> None:
    """Compare with a server; ValueError where it computes something else."""
    from ..evaluation.corpus import embedded_corpus

    tokenizer = load_tokenizer(path)
    ids = tokenizer(embedded_corpus())["input_ids"]
    found = compare(model, given.server, [ids[:length] for length in LENGTHS], tokenizer)
    rows = [
        [f"{each.tokens}", f"{each.compared}", f"{each.largest:.2g}", "-" if each.left_out is None else f"{each.left_out:.2g}"]
        for each in found
    ]
    print_texts(["tokens", "log-probabilities", "largest difference", "from the model without its encoding"], rows)
    worst = max(found, key=lambda each: each.largest)
    if worst.largest > given.tolerance:
        nearer = worst.left_out is not None and worst.left_out < worst.largest
        hint = ": it serves the model without its encoding" if nearer and (worst.left_out or 0) <= given.tolerance else ""
        raise ValueError(
            f"the server is off by up to {worst.largest:.2g} nats after {worst.tokens} tokens (--tolerance {given.tolerance:g}){hint}"
        )
