from __future__ import annotations

from ..base import register
from .transformer_xl import TransformerXL


@register("xlnet")
class XLNet(TransformerXL):
    """Relative positions of XLNet (Yang et al., 2019, arXiv:1906.08237, section 2.5).

    score(i, j) = [(q_i + u_h) k_j + (q_i + v_h) W_h R(i - j)] / sqrt(D), as in Transformer-XL, with u and v of each layer's own.

    Args:
        clamp_len: tokens; all greater distances count as this one.

    Needs training. Differs from the paper: no term for segments, of which a decoder's text is one; and no distances to keys after the
    query, which XLNet sees in pretraining.
    """
