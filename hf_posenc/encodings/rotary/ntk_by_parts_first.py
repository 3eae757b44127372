from __future__ import annotations

from torch import Tensor

from ..base import Geometry, register
from ..options import positive
from .ntk import stretched_base
from .rope import power_frequencies
from .scaling import ScaledRoPE
from .yarn import ramp, ramp_ends


@register("ntk_by_parts_first")
class FirstNTKByParts(ScaledRoPE):
    """NTK-by-parts as it was first given (bloc97, 2023, jquesnelle/scaled-rope pull request 1).

    Two ramps over the pairs: linear interpolation f / s where a pair turns less than `beta_slow` times within the native context L,
    NTK-aware frequencies (theta s^(r / (r - 2)))^(-2k/r) above `beta_fast` turns; and of that mixture below `gamma_slow` turns, the
    frequency f itself above `gamma_fast`.

    Args:
        factor: s, target context over native context.
        target_length: target context in tokens, instead of `factor`.
        beta_fast: turns within L above which nothing is linear.
        beta_slow: turns within L below which all is linear.
        gamma_fast: turns within L above which a pair is left alone.
        gamma_slow: turns within L below which nothing of f itself is left.

    Works without training. Not the formula of the YaRN paper under the same name, which is `ntk_by_parts`. The defaults were found on
    LLaMA. Differs from the author's code: neither its ntk_factor nor its extrapolation_factor, both 1 there.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        factor: float | None = None,
        target_length: int | None = None,
        beta_fast: float = 1.25,
        beta_slow: float = 0.75,
        gamma_fast: float = 16.0,
        gamma_slow: float = 2.0,
    ):
        super().__init__(geometry, factor=factor, target_length=target_length)
        self.beta = positive("beta_fast", beta_fast), positive("beta_slow", beta_slow)
        self.gamma = positive("gamma_fast", gamma_fast), positive("gamma_slow", gamma_slow)
        for name, (fast, slow) in (("beta", self.beta), ("gamma", self.gamma)):
            if fast <= slow:
                raise ValueError(f"{name}_fast must be above {name}_slow, got {fast} and {slow}")

    def inverse_frequencies(self) -> Tensor:
        plain, ntk = (power_frequencies(base, self.dim) for base in (self.theta, stretched_base(self.theta, self.dim, self.factor)))
        mixed = plain / self.factor + self._above(*self.beta) * (ntk - plain / self.factor)
        return mixed + self._above(*self.gamma) * (plain - mixed)

    def _above(self, fast: float, slow: float) -> Tensor:
        """1 for the pairs that turn `fast` times or more, 0 for those that turn `slow` times or less: [r/2]."""
        return 1 - ramp(*ramp_ends(fast, slow, self.geometry.max_positions, self.theta, self.dim), self.dim // 2)
