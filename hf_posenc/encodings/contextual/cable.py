from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Block, Geometry, precise, register
from ..options import flag, positive
from .fox import FoX

INIT_STD = 0.02


@register("cable")
class CABLE(FoX):
    """Context-aware biases for length extrapolation (Veisi et al., 2025, arXiv:2503.08067, section 3; axiomlab/Cable).

    score(i, j) = q_i k_j / sqrt(D) - sum of softplus(w_h x_t + b_h) over j < t <= i. As softplus(z) = -log sigmoid(-z), this is FoX
    (`fox`) with other initial values: w from N(0, init_std), b at 0, so that a token takes about 0.69 off what lies before it.

    Args:
        init_std: standard deviation of w at first.
        scaled: whether products are divided by sqrt(D), as the model was trained to; the authors' code does not divide.

    Needs training.
    """

    def __init__(self, geometry: Geometry, *, init_std: float = INIT_STD, scaled: bool = True):
        super().__init__(geometry, bias=0.0)
        nn.init.normal_(self.w, std=positive("init_std", init_std))
        self.scaled = flag("scaled", scaled)

    def state(self, x: Tensor, pos: Tensor) -> Tensor:
        return -F.softplus(F.linear(precise(x, x), precise(self.w, x), precise(self.b, x))).transpose(1, 2)[..., None]

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        q, k = super().meet(block)
        if not self.scaled:
            width = block.q.shape[-1]
            q[..., :width] /= block.scaling  # the columns behind it are as they were
        return q, k
