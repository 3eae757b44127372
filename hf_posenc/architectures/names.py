"""Families that call things otherwise, and differ from Llama in nothing else."""

from .base import Architecture, register


class GPTNeoX(Architecture):
    attention = "attention"


class ModernBertDecoder(Architecture):
    attention = "attn"


class DBRX(Architecture):
    layers, attention = "blocks", "norm_attn_norm.attn"


register("gpt_neox")(GPTNeoX())
register("modernbert-decoder")(ModernBertDecoder())
register("dbrx")(DBRX())
