from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...encodings import Geometry
from ..base import Engine, Entries, Reading, check_one_table, register
from ..rotation import Rotation
from ..schemes import frequencies_of, magnitude, mscale_of
from .vllm import longrope_factor

KNOWS_ITS_LENGTH = "original_max_position_embeddings"
"""With it, with llama3, or with layers of several kinds, `max_position_embeddings` is the stretched length; elsewhere it is multiplied by
the factor."""


@register("sglang")
class SGLang(Engine):
    """SGLang, which reads configurations through transformers, and has rotations of its own."""

    name = "sglang"
    read_in = "0.5.23, read, not run"

    def read(self, config: Mapping[str, Any], geometry: Geometry) -> Reading:
        parameters = {"rope_theta": geometry.theta} | dict(geometry.rope_parameters)
        kind, factor = parameters.get("rope_type", "default"), parameters.get("factor") or 1.0
        check_one_table(parameters, geometry)
        if kind == "proportional":  # its width is read from a `partial_rotary_factor` beside, which is no longer there
            parameters["partial_rotary_factor"] = config.get("partial_rotary_factor", 1.0)
        nested = any(isinstance(value, Mapping) for value in (config.get("rope_parameters") or {}).values())
        context = geometry.max_positions * (1 if nested or KNOWS_ITS_LENGTH in parameters or kind == "llama3" else factor)
        scale = 1.0
        if kind == "yarn":
            scale = self.magnitude(parameters) * parameters.get("attn_factor", 1.0)
        if kind == "longrope":
            scale = longrope_factor(parameters, geometry)
        return Reading(frequencies_of(parameters, geometry), scale, round(context))

    def magnitude(self, parameters: Mapping[str, Any]) -> float:
        """The factor on cos and sin of YaRN; no `attention_factor` is read."""
        factor, mscale, whole = parameters.get("factor") or 1.0, parameters.get("mscale"), parameters.get("mscale_all_dim")
        if mscale is None or whole is None:
            return magnitude(factor)
        return magnitude(factor, mscale) / magnitude(factor, whole)

    def told(self, rotation: Rotation, parameters: Entries) -> Entries:
        kind, length = parameters["rope_type"], rotation.context_length
        if kind == "yarn":
            parameters = parameters | mscale_of(rotation.attention_factor, parameters["factor"])
        if kind == "longrope":
            parameters = parameters | dict.fromkeys(("short_mscale", "long_mscale"), rotation.attention_factor)
        stretched = KNOWS_ITS_LENGTH in parameters or kind == "llama3"
        return {
            "rope_parameters": parameters,
            "max_position_embeddings": length if stretched else round(length / parameters.get("factor", 1)),
        }

    def command(self, rotation: Rotation, fields: Entries) -> tuple[str, ...]:
        start, told = ("python", "-m", "sglang.launch_server", "--model-path", "MODEL"), f"'{json.dumps(fields)}'"
        return *start, "--json-model-override-args", told, "--context-length", str(rotation.context_length)
