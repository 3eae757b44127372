from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import __version__

from ...encodings import Geometry
from ...encodings.rotary.rope import is_fixed, power_frequencies
from ..base import Engine, Entries, Reading, register
from ..rotation import Rotation


@register("transformers")
class Transformers(Engine):
    """Stock transformers 5, without this package."""

    name = "transformers"
    read_in = f"run in {__version__}"
    rounds_tables = True

    def read(self, config: Mapping[str, Any], geometry: Geometry) -> Reading:
        parameters = dict(geometry.rope_parameters)
        if not is_fixed(parameters):
            raise ValueError(f"its {parameters['rope_type']!r} follows the length of the whole input, and cached keys stay as they were")
        if geometry.frequencies is None:
            frequencies = power_frequencies(geometry.theta, geometry.rotary_dim)
        else:
            frequencies = torch.tensor(geometry.frequencies, dtype=torch.float32)
        return Reading(frequencies, geometry.attention_factor, geometry.max_positions)

    def told(self, rotation: Rotation, parameters: Entries) -> Entries:
        return {"rope_parameters": parameters, "max_position_embeddings": rotation.context_length}
