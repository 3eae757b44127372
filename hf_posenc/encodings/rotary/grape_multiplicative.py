from __future__ import annotations

from ..base import Geometry, register
from ..options import flag
from .learned_frequencies import LearnedFrequencies

SLOWER = 16.0


@register("grape_multiplicative")
class GRAPEMultiplicative(LearnedFrequencies):
    """Multiplicative group representational encoding (Zhang et al., 2025, arXiv:2512.07805, GRAPE-M on the planes of RoPE).

    f_n -> e^(a_n / 16) f_n with learned numbers for each layer and pair, 0 at first. The divisor is the authors': frequencies follow their
    gradients 16 times slower than other weights do under Adam.

    Args:
        per_head: each key-value head has its own.

    Needs training, from scratch or fine-tuning; right after the patch the model is as it was. Differs from the authors' code: that turns
    the other way round, by which trained weights do not survive (the model's convention is kept here); a is stored rather than 16 log f;
    queries and keys are as the model has them, without the norm they are given there.
    """

    per_layer = True
    slower = SLOWER

    def __init__(self, geometry: Geometry, *, per_head: bool = False):
        super().__init__(geometry, *(geometry.num_kv_heads,) * flag("per_head", per_head))
