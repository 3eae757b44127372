from .base import EveryNth, register


@register("rnope")
class RNoPE(EveryNth):
    """RoPE, and every fourth layer without (Yang et al., 2025, arXiv:2501.18795, section 3, RNoPE; as SmolLM3 ships it).

    Args:
        interval: n: layers n - 1, 2 n - 1 ... have no positions.
        base: the encoding of the others: a name, or {"name": ...} with its options.

    Needs training. Differs from the paper: no normalisation of queries and keys, which it tries too.
    """
