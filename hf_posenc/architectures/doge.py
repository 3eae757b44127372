from torch import nn

from .base import Architecture, register


class Doge(Architecture):
    """Each key has a bias of its own, and each query sees those with the largest."""

    def reads_mask(self, attention: nn.Module) -> bool:
        return True


register("doge")(Doge())
