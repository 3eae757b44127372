from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import positive
from .rope import power_frequencies
from .scaling import ScaledRoPE


@register("llama3")
class Llama3RoPE(ScaledRoPE):
    """The frequency scaling of Llama 3.1 (Grattafiori et al., 2024, arXiv:2407.21783, section 3.4.2; Meta's code).

    Wavelengths above L / low are divided by s, those below L / high left alone, and those between interpolated linearly
    in L / wavelength, with L the native context.

    Args:
        factor: s; Llama 3.1 uses 8.
        target_length: target context in tokens, instead of `factor`.
        low_freq_factor: turns within L below which a pair is fully scaled.
        high_freq_factor: turns within L above which a pair is left alone.

    Needs training: Llama 3.1 continued its pretraining through the extension.
    """

    needs_training = "continued pretraining at the target length"

    def __init__(
        self,
        geometry: Geometry,
        *,
        factor: float | None = None,
        target_length: int | None = None,
        low_freq_factor: float = 1.0,
        high_freq_factor: float = 4.0,
    ):
        super().__init__(geometry, factor=factor, target_length=target_length)
        self.low, self.high = positive("low_freq_factor", low_freq_factor), positive("high_freq_factor", high_freq_factor)
        if self.high <= self.low:
            raise ValueError(f"high_freq_factor must be above low_freq_factor, got {high_freq_factor} and {low_freq_factor}")

    def inverse_frequencies(self) -> Tensor:
        native = self.geometry.max_positions
        plain = power_frequencies(self.theta, self.dim)
        wavelength = 2 * math.pi / plain
        keep = (native / wavelength - self.low) / (self.high - self.low)
        between = (1 - keep) * plain / self.factor + keep * plain
        scaled = torch.where(wavelength > native / self.low, plain / self.factor, between)
        return torch.where(wavelength < native / self.high, plain, scaled)

    def rope_parameters(self):
        return {
            "rope_type": "llama3",
            "rope_theta": self.theta,
            "factor": self.factor,
            "low_freq_factor": self.low,
            "high_freq_factor": self.high,
            "original_max_position_embeddings": self.geometry.max_positions,
        }
