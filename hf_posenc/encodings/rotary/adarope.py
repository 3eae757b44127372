from __future__ import annotations

from ..base import Geometry, register
from .learned_frequencies import LearnedFrequencies


@register("adarope")
class AdaRoPE(LearnedFrequencies):
    """Frequencies of each head (Wang et al., 2026, "AdaRoPE", arXiv:2607.19363): its adaptive frequencies.

    f_k -> e^(a_hk) f_k with learned numbers for each layer, key-value head and pair, 0 at first; the query heads of a group turn with
    their key head.

    Needs training, from scratch or fine-tuning; right after the patch the model is as it was. Differs from the paper: without its
    length-aware temperature of each head; the authors published no code.
    """

    per_layer = True

    def __init__(self, geometry: Geometry):
        super().__init__(geometry, geometry.num_kv_heads)
