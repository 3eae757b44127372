from __future__ import annotations

from ..base import Geometry, register
from .rope_nd import RoPEND


@register("rope_2d")
class RoPE2D(RoPEND):
    """Rotary position embedding on two axes (Heo et al., 2024, arXiv:2403.13298, section 3.1): `rope_nd` with two.

    Args:
        layout: "axial": half of the pairs turn with the first axis, half with the second, each with the frequencies theta^(-4k/r);
            "interleaved": every other pair, each with the frequency that it has in the model; or "mixed": RoPE-Mixed (section 3.2), where
            each pair turns with both, by learned frequencies of each layer and key-value head (see `rope_nd`).

    Needs fine-tuning; all but "axial" work at once on text.
    """

    def __init__(self, geometry: Geometry, *, layout: str = "axial"):
        super().__init__(geometry, axes=2, layout=layout)
