from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ...encodings import Geometry
from ..base import Engine, Entries, Reading, check_one_table, register
from ..rotation import Rotation
from ..schemes import frequencies_of, magnitude

SCALED_ALREADY = ("longrope", "llama3", "yarn")
"""Schemes whose `max_position_embeddings` is the stretched length; it is multiplied by the factor of all others."""
STRETCHED = "gemma3"
"""In model types that say the stretched length with any scheme."""
RENAMED = (("su", "longrope"), ("mrope", "default"))
"""What `type` said before transformers had the name in `rope_type`."""
BEFORE = "vLLM before #56446 reads attn_factor, and no attention_factor or truncate"


@register("vllm")
class VLLM(Engine):
    """vLLM, which reads configurations through transformers, and has rotations of its own."""

    name = "vllm"
    read_in = "0.33.0, read, not run"
    rounds_tables = True

    def read(self, config: Mapping[str, Any], geometry: Geometry) -> Reading:
        parameters = {"rope_theta": geometry.theta} | dict(geometry.rope_parameters)
        kind = parameters.get("rope_type", "default")
        if (former := parameters.get("type", kind)) != kind and (former, kind) not in RENAMED:
            raise ValueError(f"it refuses a `type` of {former!r} beside a `rope_type` of {kind!r}")
        check_one_table(parameters, geometry)
        stretched = kind in SCALED_ALREADY or STRETCHED in str(config.get("model_type"))
        context = geometry.max_positions * (1 if stretched else parameters.get("factor", 1))
        return Reading(frequencies_of(parameters, geometry), attention_factor(parameters, geometry), round(context))

    def told(self, rotation: Rotation, parameters: Entries) -> Entries:
        kind, length = parameters["rope_type"], rotation.context_length
        if kind == "yarn":
            # what old versions multiply theirs by
            parameters = parameters | {"attn_factor": rotation.attention_factor / magnitude(parameters["factor"])}
        if kind == "longrope":
            parameters = parameters | dict.fromkeys(("short_mscale", "long_mscale"), rotation.attention_factor)
        native = length if kind in SCALED_ALREADY else round(length / parameters.get("factor", 1))
        return {"rope_parameters": parameters, "max_position_embeddings": native}

    def command(self, rotation: Rotation, fields: Entries) -> tuple[str, ...]:
        return "vllm", "serve", "MODEL", "--hf-overrides", f"'{json.dumps(fields)}'", "--max-model-len", str(rotation.context_length)

    def notes(self, rotation: Rotation, fields: Entries) -> tuple[str, ...]:
        parameters = fields["rope_parameters"]
        if parameters["rope_type"] == "yarn" and parameters.get("truncate") is False:
            return (f"{BEFORE}: it would compute other frequencies",)
        return ()


def attention_factor(parameters: Mapping[str, Any], geometry: Geometry) -> float:
    """The factor on cos and sin of a scheme: transformers' own rules for YaRN, LongRoPE's under other names."""
    factor = parameters.get("factor") or 1.0
    if parameters.get("rope_type") == "yarn":
        if (given := parameters.get("attention_factor")) is not None:
            return float(given)
        mscale, whole = parameters.get("mscale"), parameters.get("mscale_all_dim")
        return magnitude(factor, mscale) / magnitude(factor, whole) if mscale and whole else magnitude(factor)
    return longrope_factor(parameters, geometry) if parameters.get("rope_type") == "longrope" else 1.0


def longrope_factor(parameters: Mapping[str, Any], geometry: Geometry) -> float:
    """As vLLM and SGLang have it: `long_mscale`, else what lengths say."""
    if (given := parameters.get("long_mscale")) is not None:
        return float(given)
    original = parameters["original_max_position_embeddings"]
    return math.sqrt(1 + max(0.0, math.log(geometry.max_positions / original)) / math.log(original))
