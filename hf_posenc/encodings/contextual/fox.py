from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Block, Geometry, PositionalEncoding, precise, register
from ..options import number
from ..widths import Term, widened


@register("fox")
class FoX(PositionalEncoding):
    """Forgetting attention (Lin et al., 2025, arXiv:2503.02130, section 3).

    score(i, j) = q_i k_j / sqrt(D) + sum of log f_t over j < t <= i, with a forget gate f_t = sigmoid(w_h x_t + b_h) for each head of each
    layer, from what the layer's attention is given.

    Args:
        bias: b at first. At 6, the default, the gates are nearly open: 0.0025 is taken off a score for each token of distance. The authors
            train from scratch with 0.

    Needs training. Differs from the authors' code: w starts at zero; no normalisation of queries and keys, no output gate, no token shift,
    which are their architecture and no part of the encoding.
    """

    per_layer = True
    adds_columns = True
    caches = "raw"
    relative = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, bias: float = 6.0):
        super().__init__(geometry)
        self.w = nn.Parameter(torch.zeros(geometry.num_heads, geometry.hidden_size))
        self.b = nn.Parameter(torch.full((geometry.num_heads,), number("bias", bias, -100.0, 100.0)))

    def state(self, x: Tensor, pos: Tensor) -> Tensor:
        gates = F.linear(precise(x, x), precise(self.w, x), precise(self.b, x))
        return F.logsigmoid(gates).transpose(1, 2)[..., None]

    def increments(self, state: Tensor) -> Tensor:
        return state

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        assert block.q_state is not None and block.k_state is not None
        start = block.k_state[:, :, -1:]  # sums may begin anywhere: small numbers are exacter
        own, keys = (precise((x - start)[..., 0], block.q) for x in (block.q_state, block.k_state))
        return widened(block.q, block.k, [Term(own, None), Term(None, -keys)], block.scaling)
