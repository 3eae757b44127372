from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, register, widest
from ..options import positive
from .by_length import RoPEBySteps
from .rope import power_frequencies
from .scaling import LARGEST_FACTOR
from .yarn import NTKByParts


@register("dynamic_yarn")
class DynamicYaRN(RoPEBySteps, NTKByParts):
    """Dynamic YaRN (Peng et al., 2023, arXiv:2309.00071, section 3.3 with definition 3; jquesnelle/yarn).

    YaRN at s = n / L for a text of n > L tokens, L the native context: frequencies by parts, and logits times (0.1 ln s + 1)^2.

    Args:
        tuned: scale that the model was tuned for, below which s never falls.
        beta_fast: turns within L above which a pair is left alone.
        beta_slow: turns within L below which a pair is fully interpolated.
        truncate: round the ends of the ramp outwards to whole pairs, as the authors' code does.
        step: beyond the length that needs nothing, n grows in steps of this many tokens, so that rows share frequencies; default L / 64.

    Works without training. Differs from the authors' code: each query has the s of its own length, where theirs has that of the whole
    input and leaves keys in the cache as they were; both temperatures are put on the query.
    """

    keep: Tensor

    def __init__(
        self,
        geometry: Geometry,
        *,
        tuned: float = 1.0,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        truncate: bool = True,
        step: int | None = None,
    ):
        tuned = positive("tuned", tuned, at_least=1.0, at_most=LARGEST_FACTOR)
        super().__init__(geometry, step=step, factor=tuned, beta_fast=beta_fast, beta_slow=beta_slow, truncate=truncate)

    @property
    def settled_length(self) -> int:
        return self.context_length

    def inverse_frequencies(self) -> Tensor:
        return power_frequencies(self.theta, self.dim) if self.factor == 1 else super().inverse_frequencies()

    def reset_buffers(self) -> None:
        super().reset_buffers()
        self.set_buffer("keep", self.kept())

    def frequencies_for(self, pos: Tensor) -> Tensor:
        stretched = self.mixed(self._scale(pos)[..., None], self.keep.to(pos.device))
        return torch.where(pos[..., None] < self.settled_length, self.inv_freq.to(pos.device), stretched.float())

    def query_factor(self, pos: Tensor) -> Tensor:
        return (0.1 * self._scale(pos).log() + 1)[:, None, :, None] ** 2

    def _scale(self, pos: Tensor) -> Tensor:
        """s for queries at `pos`."""
        grown = self.stepped(pos).to(widest(pos.device)) / self.geometry.max_positions
        return torch.where(pos < self.settled_length, self.factor, grown)
