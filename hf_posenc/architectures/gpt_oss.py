from .base import Architecture, register


class GPTOSS(Architecture):
    packs = False


register("gpt_oss")(GPTOSS())
