from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...encodings import Geometry
from ..base import Engine, Entries, Export, Reading, register
from ..rotation import Rotation
from ..schemes import factors_of, frequencies_of, magnitude
from .mlx import LLAMA3_LENGTH
from .sglang import KNOWS_ITS_LENGTH

SCALING = "rope.scaling."
READS_TABLE = ("llama", "granite")
"""Architectures of llama.cpp that look at `rope_freqs.weight`, of those that were read; Qwen's do not."""
CALLED = {"mistral": "llama", "smollm": "llama", "ministral": "llama"}
"""Architectures that have another name there than in transformers."""


@register("llama.cpp")
class LlamaCpp(Engine):
    """llama.cpp, which reads the metadata of a GGUF, and one tensor beside them."""

    name = "llama.cpp"
    read_in = "b11549, run through xllamacpp 2026.10"
    by_kind = False
    table_by_halves = False

    def read(self, config: Mapping[str, Any], geometry: Geometry, table: Tensor | None = None) -> Reading:
        """What is computed from metadata, their names without the architecture."""
        kind = config.get(f"{SCALING}type", "linear")
        factor = config.get(f"{SCALING}factor") or 1.0
        scale = config.get(f"{SCALING}attn_factor", 1.0)
        parameters = {"rope_type": "default", "rope_theta": config.get("rope.freq_base", 10_000.0)}
        if kind == "yarn":
            original = config.get(f"{SCALING}original_context_length", config["context_length"])
            parameters |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}  # its ramp is 32 to 1
            scale *= magnitude(factor)
        elif kind == "linear":
            parameters |= {"rope_type": "linear", "factor": factor}
        elif kind != "none":
            raise ValueError(f"scaling of the type {kind!r} is chosen by the length that is served")
        frequencies = frequencies_of(parameters, geometry)
        return Reading(frequencies if table is None else frequencies / table, scale, config["context_length"])

    def serve(self, config: Mapping[str, Any], geometry: Geometry) -> Reading:
        """What is computed from the GGUF that convert_hf_to_gguf.py makes of a checkpoint.

        Raises:
            NotImplementedError: the converter has code of its own for such models, which was not read.
        """
        if "mscale_all_dim" in dict(geometry.rope_parameters):
            raise NotImplementedError("it has code of its own for models that say mscale_all_dim, which is not read here")
        fields, table = converted(config, geometry)
        return self.read(fields, geometry, table)

    def export(self, rotation: Rotation, architecture: str | None = None) -> Export:
        """Metadata of the GGUF, each under its name after the architecture's.

        Args:
            architecture: in the GGUF; default what a model of this type becomes.
        """
        kind = rotation.config["model_type"]
        architecture, faults = architecture or CALLED.get(kind, kind), []
        for how, fields, table in self.spellings(rotation):
            fault = "" if table is None or architecture in READS_TABLE else f"{architecture!r} is not known to read rope_freqs.weight"
            fault = fault or self.read(fields, rotation.geometry, table).differs(rotation)
            if not fault:
                named = {f"{architecture}.{name}": value for name, value in fields.items()}
                return Export(self.name, self.read_in, rotation.name, how, named, flags(fields, table), notes(fields, table), table)
            faults.append(f"{how}: {fault}")
        raise ValueError(f"it has no way to compute {rotation.name!r} in this model ({'; '.join(faults)})")

    def spellings(self, rotation: Rotation) -> Iterator[tuple[str, Entries, Tensor | None]]:
        """Metadata, and a table, that may say the rotation, the plainest first."""
        for how, parameters in self.ways(rotation):
            kind, factor = parameters["rope_type"], parameters.get("factor", 1.0)
            fields: Entries = {"context_length": rotation.context_length, "rope.freq_base": parameters["rope_theta"]}
            if kind == "linear":
                yield how, fields | {f"{SCALING}type": "linear", f"{SCALING}factor": factor}, None
            if kind == "yarn":
                scale = rotation.attention_factor / magnitude(factor)
                lengths = {f"{SCALING}original_context_length": parameters["original_max_position_embeddings"]}
                scaling = {f"{SCALING}type": "yarn", f"{SCALING}factor": factor, f"{SCALING}attn_factor": scale}
                yield how, fields | scaling | lengths, None
            if kind == "default":
                yield how, fields | {f"{SCALING}type": "none"}, None
            if kind == "longrope":
                scaling = {f"{SCALING}type": "none", f"{SCALING}attn_factor": rotation.attention_factor}
                yield how, fields | scaling, torch.tensor(parameters["long_factor"], dtype=torch.float32)


def converted(config: Mapping[str, Any], geometry: Geometry) -> tuple[Entries, Tensor | None]:
    """Metadata and table of the GGUF that convert_hf_to_gguf.py makes of what transformers makes of a config.json.

    An `attention_factor`, and the ends of the ramp of YaRN, become keys that are `unread`. The native length of llama3 is read at the top.
    """
    parameters = dict(geometry.rope_parameters)
    kind, factor = parameters.get("rope_type", "default"), parameters.get("factor")
    fields: Entries = {"context_length": geometry.max_positions, "rope.freq_base": geometry.theta}
    if kind == "linear":
        fields |= {f"{SCALING}type": "linear", f"{SCALING}factor": factor}
    elif kind == "yarn" and factor is not None:
        fields |= {f"{SCALING}type": "yarn", f"{SCALING}factor": factor}
        fields[f"{SCALING}original_context_length"] = parameters["original_max_position_embeddings"]
    elif kind == "longrope":
        fields[f"{SCALING}type"] = kind
    elif kind == "llama3" and CALLED.get(config["model_type"], config["model_type"]) in READS_TABLE:
        told = parameters | {KNOWS_ITS_LENGTH: config.get(KNOWS_ITS_LENGTH, LLAMA3_LENGTH)}
        return fields, torch.tensor(factors_of(frequencies_of(told, geometry), geometry), dtype=torch.float32)
    return fields, None


def unread(factor: float) -> Entries:
    """Keys of YaRN that the converter writes and llama.cpp does not look at, in the architectures that were run; what it takes instead."""
    return {f"{SCALING}yarn_attn_factor": magnitude(factor), f"{SCALING}yarn_beta_fast": 32.0, f"{SCALING}yarn_beta_slow": 1.0}


def flags(fields: Entries, table: Tensor | None) -> tuple[str, ...]:
    """The command that says the same of a GGUF of the model as it came; empty where no flag does."""
    kind, start = fields[f"{SCALING}type"], ("llama-server", "-m", "MODEL.gguf", "-c", str(fields["context_length"]))
    if table is not None or fields.get(f"{SCALING}attn_factor", 1.0) != 1.0:
        return ()
    base = ("--rope-freq-base", f"{fields['rope.freq_base']:.10g}", "--rope-scaling", kind)
    if kind == "none":
        return *start, *base
    stretched = (*start, *base, "--rope-scale", f"{fields[f'{SCALING}factor']:g}")
    return stretched if kind == "linear" else (*stretched, "--yarn-orig-ctx", str(fields[f"{SCALING}original_context_length"]))


def notes(fields: Entries, table: Tensor | None) -> tuple[str, ...]:
    """What else is to be known."""
    if not flags(fields, table):
        return ("no flag of llama-server says this: it must be in the GGUF (--gguf BASE.gguf --output NEW.gguf)",)
    return ()
