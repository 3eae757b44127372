from .base import Architecture, register


class GPTNeoX(Architecture):
    attention = "attention"


register("gpt_neox")(GPTNeoX())
