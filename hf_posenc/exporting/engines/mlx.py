from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...encodings import Geometry
from ..base import Engine, Entries, Reading, register
from ..rotation import Rotation
from ..schemes import frequencies_of, magnitude, mscale_of

LLAMA3_LENGTH = 8192
YARN_LENGTH = 4096
MROPE = "mrope"
"""Its name for positions along several axes, which are one in a text."""
"""Native lengths where the configuration says none."""


@register("mlx")
class MLX(Engine):
    """mlx-lm, which reads `rope_theta` and `rope_scaling` of config.json, the names of transformers 4, and no others."""

    name = "mlx"
    read_in = "mlx-lm 0.32.2, run"
    by_kind = False

    def read(self, config: Mapping[str, Any], geometry: Geometry) -> Reading:
        scaling = config.get("rope_scaling") or {}
        kind = scaling.get("type") or scaling.get("rope_type", "default")
        parameters = {**scaling, "rope_type": kind, "rope_theta": config.get("rope_theta", 10_000.0)}
        scale, length = 1.0, config["max_position_embeddings"]
        if kind == "longrope":
            if geometry.interleaved:
                raise ValueError("a table is read for rotations by halves alone")
            original = parameters.get("original_max_position_embeddings") or config["original_max_position_embeddings"]
            scale = math.sqrt(1 + max(0.0, math.log(length / original)) / math.log(original))
        elif kind == "llama3":
            parameters.setdefault("original_max_position_embeddings", LLAMA3_LENGTH)
        elif kind == "yarn":
            parameters.setdefault("original_max_position_embeddings", YARN_LENGTH)
            parameters["truncate"] = True
            factor = parameters["factor"]
            scale = magnitude(factor, parameters.get("mscale", 1)) / magnitude(factor, parameters.get("mscale_all_dim", 0))
        elif kind == "dynamic":
            raise ValueError("'dynamic' follows the length of the whole input there, and cached keys stay as they were")
        elif kind in ("default", MROPE):
            parameters["rope_type"] = "default"
            parameters.pop("partial_rotary_factor", None)
        return Reading(frequencies_of(parameters, geometry), scale, length)

    def told(self, rotation: Rotation, parameters: Entries) -> Entries:
        kind, factor, length = parameters["rope_type"], rotation.attention_factor, rotation.context_length
        scaling: Entries | None = parameters
        if kind == "yarn":
            scaling = parameters | mscale_of(factor, parameters["factor"])
        if kind == "longrope" and factor >= 1:  # there is no word for the factor, but it follows from the lengths
            scaling = parameters | {"original_max_position_embeddings": length ** (1 / factor**2)}
        if kind == "default":
            scaling = None
        both = {"rope_parameters": parameters, "rope_theta": parameters["rope_theta"]}
        return both | {"rope_scaling": scaling, "max_position_embeddings": length}

    def notes(self, rotation: Rotation, fields: Entries) -> tuple[str, ...]:
        return ("the entries must be in config.json: no option of mlx_lm sets them",)
