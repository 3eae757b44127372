from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Block, Geometry, PositionalEncoding, precise, register
from ..bias.alibi import native_slopes
from ..options import one_of
from ..widths import Term, widened

GATES = ("q", "k", "qk")
STARTS = ("normal", "alibi")
EPS = 1e-6


@register("grape_additive")
class GRAPEAdditive(PositionalEncoding):
    """Additive group representational encoding (Zhang et al., 2025, arXiv:2512.07805, GRAPE-A): ALiBi with slopes from the content.

    score(i, j) = q_i k_j / sqrt(D) - (i - j) m_h w_h [softplus(v_h q_i / sqrt(D)) + softplus(u_h k_j / sqrt(D))], with ALiBi's slopes m
    (or the model's own), w_h > 0 and vectors u, v of length 1, learned for each head of each layer.

    Args:
        gate: which of the two summands there are: those of the query "q", of the key "k", or both, "qk".
        init: "normal" directions, and w = 1; or "alibi": u and v are of any length, at first 0, and w such that the slopes are ALiBi's.

    Needs training. It is four products of a number of the query and one of the key: further columns. Differs from the authors' code:
    queries and keys are as the model has them, without the norm they are given there.
    """

    slopes: Tensor
    adds_columns = True
    relative = True
    per_layer = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, gate: str = "qk", init: str = "normal"):
        super().__init__(geometry)
        one_of("gate", gate, GATES)
        self.directed = one_of("init", init, STARTS) == "normal"
        shape = geometry.num_heads, geometry.head_dim
        start, w = (torch.randn, 1.0) if self.directed else (torch.zeros, 1 / len(gate) / math.log(2))
        self.starts_as = "" if self.directed else "alibi"
        self.v = nn.Parameter(start(shape)) if "q" in gate else None
        self.u = nn.Parameter(start(shape)) if "k" in gate else None
        self.w = nn.Parameter(torch.full(shape[:1], math.log(math.expm1(w))))

    def reset_buffers(self) -> None:
        self.set_buffer("slopes", native_slopes(self.geometry))

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        # Positions are counted from the last key, where the numbers of its neighbours are small.
        i, j = (precise(x - block.k_pos[:, -1:], block.q)[:, None] for x in (block.q_pos, block.k_pos))
        terms = []
        if self.v is not None:
            gate = self._opened(self.v, block.q, block.q)
            terms += [Term(-i * gate, None), Term(gate, j)]
        if self.u is not None:
            gate = self._opened(self.u, block.k, block.q)
            terms += [Term(-i, gate), Term(None, j * gate)]
        return widened(block.q, block.k, terms, block.scaling)

    def _opened(self, vectors: Tensor, x: Tensor, like: Tensor) -> Tensor:
        """m w softplus(v x / sqrt(D)) of queries [B,H,T,D] or keys [B,G,T,D]: [B,H,T]."""
        v, slope = precise(vectors, like), precise(self.slopes, like) * F.softplus(precise(self.w, like))
        v = F.normalize(v, dim=-1, eps=EPS) if self.directed else v
        met = v.unflatten(0, (x.shape[1], -1)) @ precise(x, like).mT * x.shape[-1] ** -0.5
        # This is softplus, whose own gradient the compiler (torch 2.13) takes to lie in memory otherwise than it does.
        return torch.logaddexp(met, met.new_zeros(())).flatten(1, 2) * slope[:, None]
