from __future__ import annotations

from collections.abc import Sequence

from ..encodings.options import count
from .base import EveryNth, Part, register


@register("miniwin")
class MiniWin(EveryNth):
    """MiniWin: periodic RoPE in sliding windows, and every fourth layer and the last without (Huo, 2026, arXiv:2605.27980).

    Args:
        window: W of `periodic_rope`, in tokens.
        interval: n: layers n - 1, 2 n - 1 ... have no positions.

    Needs training. Differs from the authors' code: no temperature in the layers without positions, an option that is off there.
    """

    def __init__(self, *, window: int = 64, interval: int = 4):
        super().__init__(interval=interval, base={"name": "periodic_rope", "window": count("window", window)})

    def parts(self, layers: tuple[int, ...]) -> Sequence[Part]:
        between, every = super().parts(layers)
        return [between, {**every, "layers": sorted({*every["layers"], layers[-1]})}]
