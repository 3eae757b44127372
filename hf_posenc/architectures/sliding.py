"""Families in which only the layers with a sliding window rotate."""

from torch import nn

from .base import Architecture, register


class Sliding(Architecture):
    def uses_slot(self, attention: nn.Module) -> bool:
        return attention.sliding_window is not None


class Afmoe(Sliding):
    packs = False


class Exaone(Architecture):
    """Without a window in the configuration, all layers rotate."""

    def uses_slot(self, attention: nn.Module) -> bool:
        return attention.sliding_window is None or bool(attention.is_sliding)


register("afmoe", "lara_mini")(Afmoe())
register("flint")(Sliding())
register("exaone4", "exaone_moe", "kolibri1")(Exaone())
