from __future__ import annotations

from ..base import Geometry, register
from .learned_frequencies import LearnedFrequencies


@register("lerope")
class LeRoPE(LearnedFrequencies):
    """Learnable RoPE frequencies (Karypis et al., 2026, arXiv:2607.10134, section 3.1).

    f_k -> e^(a_k) f_k with one learned number a pair, shared by all layers and heads, 0 at first.

    Needs training, from scratch or fine-tuning; right after the patch the model is as it was. The authors published no code.
    """

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
