"""What the schemes of `rope_parameters` compute: formulas of this package under the names of transformers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..encodings import Geometry, create
from ..encodings.rotary.rope import RoPE, exponents, power_frequencies

STOPPED = 1e30
"""Divides the frequency of a pair that does not turn: JSON has no infinity."""


def frequencies_of(parameters: Mapping[str, Any], geometry: Geometry) -> Tensor:
    """Radians per token of each pair, [r/2] float32, that a scheme makes in a model of this geometry.

    Raises:
        ValueError: there is no such scheme, or it makes no table.
    """
    kind, theta = parameters.get("rope_type", "default"), float(parameters["rope_theta"])
    if kind == "longrope":
        factors = torch.tensor(parameters["long_factor"], dtype=torch.float32)
        return 1.0 / (factors * theta ** exponents(2 * len(factors)))
    if kind not in MADE_BY:
        raise ValueError(f"there is no table of frequencies for rope_type {kind!r}")
    name, options = MADE_BY[kind]
    given = {ours: parameters[theirs] for theirs, ours in options.items() if parameters.get(theirs) is not None}
    if "factor" in options and "factor" not in given:
        raise ValueError(f"rope_type {kind!r} has no factor")
    length = parameters.get("original_max_position_embeddings") or geometry.max_positions
    encoding = create(name, unscaled(geometry, theta=theta, max_positions=length), **given)
    assert isinstance(encoding, RoPE)
    return encoding.inverse_frequencies()


STRETCHED = {"factor": "factor"}
RAMP = STRETCHED | {"beta_fast": "beta_fast", "beta_slow": "beta_slow", "truncate": "truncate"}
MADE_BY: dict[str, tuple[str, dict[str, str]]] = {
    "default": ("rope", {}),
    "linear": ("linear", STRETCHED),
    "yarn": ("ntk_by_parts", RAMP),
    "llama3": ("llama3", STRETCHED | {"low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"}),
    "proportional": ("p_rope", {"partial_rotary_factor": "p"}),
}
"""Which encoding has the frequencies of a scheme, and what its options are called there."""


def unscaled(geometry: Geometry, **changes: Any) -> Geometry:
    """`geometry` without the scaling that the model came with."""
    return dataclasses.replace(geometry, rope_type="default", rope_parameters=(), frequencies=None, attention_factor=1.0, **changes)


def factors_of(frequencies: Tensor, geometry: Geometry) -> list[float]:
    """The factors that make `frequencies` [r/2] out of those of a geometry."""
    plain = power_frequencies(geometry.theta, 2 * len(frequencies)).double()
    return torch.where(frequencies == 0, STOPPED, plain / frequencies.double()).tolist()


def theta_of(frequencies: Tensor) -> float | None:
    """The base of a table that is theta^(-2k/r), or may be; None where it has no such."""
    last = float(frequencies[-1])
    return last ** (-len(frequencies) / (len(frequencies) - 1)) if len(frequencies) > 1 and 0 < last < 1 else None


def magnitude(factor: float, mscale: float = 1.0) -> float:
    """0.1 m ln s + 1, the factor on cos and sin of YaRN at the scale s."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def mscale_of(attention_factor: float, factor: float) -> dict[str, float]:
    """`mscale` and `mscale_all_dim` whose ratio is a factor on cos and sin of YaRN.

    The second is 0, with which nothing else is scaled in models that do so by it (DeepSeek).
    """
    return {"mscale": (attention_factor - 1) / (0.1 * math.log(factor)) if factor > 1 else 0.0, "mscale_all_dim": 0.0}
