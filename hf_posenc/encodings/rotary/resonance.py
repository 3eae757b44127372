from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..base import Geometry, register, widest
from .rope import RoPE, cos_sin
from .scaling import scheme


def whole_wavelengths(inv_freq: Tensor) -> Tensor:
    """Of frequencies, in tokens: infinite where a pair stands still."""
    return (2 * math.pi / inv_freq).round().clamp(min=1)


@register("resonance")
class Resonance(RoPE):
    """Resonance RoPE (Wang et al., 2024, arXiv:2403.00071, section 4; sheryc/resonance_rope), around any other scheme of frequencies.

    f -> 2 pi / round(2 pi / f): wavelengths are whole numbers of tokens, so that a pair that came round in training shows no new angle on
    a longer text.

    Args:
        base: name of the encoding whose frequencies are rounded: "yarn", "rope", "ntk" and so on.
        factor: passed on to the base, if it takes one.
        target_length: passed on to the base, if it takes one.
        options: further options of the base, by name.

    Works without training where its base does. Differs from the authors' code: in the native slot, positions are not taken modulo the
    wavelength, which changes nothing but rounding; an encoding whose frequencies depend on the length of the text cannot be the base.
    """

    needs_training = ""

    def __init__(
        self,
        geometry: Geometry,
        *,
        base: str = "yarn",
        factor: float | None = None,
        target_length: int | None = None,
        options: dict[str, Any] | None = None,
    ):
        super().__init__(geometry)
        self.base = scheme(self.name, base, geometry, factor, target_length, options)
        self.theta, self.dim, self.attention_factor = self.base.theta, self.base.dim, self.base.attention_factor
        self.per_layer = self.base.per_layer

    @property
    def context_length(self) -> int | None:
        return self.base.context_length

    def inverse_frequencies(self) -> Tensor:
        return 2 * math.pi / whole_wavelengths(self.base.inverse_frequencies())

    def angles(self, pos: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        wavelengths = whole_wavelengths(self.inv_freq).to(pos.device, widest(pos.device))
        within = pos[..., None].to(wavelengths) % wavelengths
        return cos_sin(within, 2 * math.pi / wavelengths, self.attention_factor, like)

    def rope_parameters(self):
        return None
