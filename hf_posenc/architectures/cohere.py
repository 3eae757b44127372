from .base import Architecture, register


class Cohere(Architecture):
    interleaved = True


register("cohere")(Cohere())
