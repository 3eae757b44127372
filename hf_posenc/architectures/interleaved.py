from torch import nn

from .base import Architecture, register


class Interleaved(Architecture):
    interleaved = True


class Cohere2(Interleaved):
    """Only layers with a sliding window rotate, and those before the first expert."""

    def uses_slot(self, attention: nn.Module) -> bool:
        return attention.sliding_window is not None or bool(getattr(attention, "force_rope", False))


register("cohere", "ernie4_5", "ernie4_5_moe", "glm", "glm4", "helium")(Interleaved())
register("cohere2", "cohere2_moe")(Cohere2())
