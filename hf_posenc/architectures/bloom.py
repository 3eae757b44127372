from typing import Any

from transformers import PretrainedConfig

from ..attention.products import Products
from .base import register
from .handed import HandedArchitecture, Without


class WithZero(Without):
    """The argument may not be None: one zero [1,1,1] for any number of heads and keys."""

    def instead(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {self.argument: kwargs[self.argument].new_zeros(1, 1, 1)}


class Bloom(HandedArchitecture):
    """Its bias, added in one call with the products, is m_h j, which softmax takes for -m_h (i - j). It takes no position ids."""

    layers, attention, length = "h", "self_attention", "seq_length"
    seam = Products()
    without = WithZero("alibi")

    def max_positions(self, config: PretrainedConfig) -> int:
        return getattr(config, self.length, 2048)  # not every configuration says it


register("bloom")(Bloom())
