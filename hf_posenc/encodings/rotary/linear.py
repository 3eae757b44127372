from __future__ import annotations

from torch import Tensor

from ..base import register
from .rope import native_frequencies
from .scaling import ScaledRoPE


@register("linear")
class PositionInterpolation(ScaledRoPE):
    """Linear position interpolation (Chen et al., 2023, arXiv:2306.15595, eq. 4).

    R(t) -> R(t / s): every frequency is divided by the factor s.

    Composes with a scaling the model already has: its frequencies are divided again,
    unless they depend on the length of the text.

    Args:
        factor: s, target context over native context.
        target_length: target context in tokens, instead of `factor`.

    Needs training: about 1,000 steps at the target length.
    """

    composes = True
    needs_training = "about 1,000 steps at the target length"

    def inverse_frequencies(self) -> Tensor:
        return native_frequencies(self.geometry) / self.factor

    def rope_parameters(self):
        if self.geometry.rope_type != "default":
            return None
        return {"rope_type": "linear", "rope_theta": self.theta, "factor": self.factor}
