from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, at_hand, precise, register
from ..options import count, positive
from .limited import Limited


@register("floater")
class Floater(Limited):
    """Positions by a continuous dynamical model (Liu et al., 2020, arXiv:2003.09229, section 3; FLOATER).

    q_i -> q_i + p_q(i), k_j -> k_j + p_k(j), v_j -> v_j + p_v(j) in every layer, with p(t) = p(0) + integral of h(s, p(s)) from 0 to t
    and h a learned network, W2 [relu(W1 [p | s] + b1) | s] + b2, in time s = step * tokens. Solved by Runge-Kutta of order 4 over
    `stride` tokens at a time, cubic (Hermite) between; without gradients the solution is kept until the parameters change.

    Args:
        max_positions: T in tokens; default the native context. No parameter depends on it.
        step: time from one token to the next.
        stride: tokens of one step of the solver.

    p(0), W2 and b2 are 0 at first: right after the patch the model has no positions (`nope`). Needs training, where each pass solves
    the equation anew, one step after the other.

    Differs from the authors' code: h has the width of a head and is shared by the heads of a layer; there it has that of the model and
    is shared by all layers. There the dynamics start at random (Xavier) beside sinusoidal positions in the embeddings, take five steps
    a token, and are solved again every 400 updates alone.
    """

    per_layer = True
    needs_training = "pretraining or fine-tuning"
    starts_as = "nope"

    def __init__(self, geometry: Geometry, *, max_positions: int | None = None, step: float = 0.01, stride: int = 16):
        super().__init__(geometry, max_positions)
        self.step, self.stride = positive("step", step), count("stride", stride, at_most=1 << 16)
        width = geometry.head_dim
        heads = geometry.num_heads, geometry.num_kv_heads, geometry.num_kv_heads
        self.start_q, self.start_k, self.start_v = (nn.Parameter(torch.zeros(n, width)) for n in heads)
        self.w1, self.b1 = nn.Parameter(torch.empty(width, width + 1)), nn.Parameter(torch.zeros(width))
        self.w2, self.b2 = nn.Parameter(torch.zeros(width, width + 1)), nn.Parameter(torch.zeros(width))
        nn.init.xavier_normal_(self.w1)
        self.kept: dict[str, tuple] = {}

    def reset_buffers(self) -> None:
        self.kept.clear()

    def rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        return self._moved(q, q_pos, "start_q"), self._moved(k, k_pos, "start_k")

    def value(self, v: Tensor, pos: Tensor) -> Tensor:
        return self._moved(v, pos, "start_v")

    def _moved(self, x: Tensor, pos: Tensor, start: str) -> Tensor:
        """x [B,H,T,D] at `pos` [1 or B,T], and what has become of the parameter `start` [H,D] there; of values as wide as they are."""
        if not x.shape[2]:
            return x
        last = int(pos.max()) if at_hand(pos) else self.rows - 1
        before, nodes = pos // self.stride, self._solved(start, last // self.stride + 2, x)
        u = (precise(pos % self.stride, x) / self.stride)[:, :, None, None]
        (p, h), (p_next, h_next) = (tuple(part[n] for part in nodes) for n in (before, before + 1))  # each [B,T,H,D]
        h, h_next = h * (self.step * self.stride), h_next * (self.step * self.stride)
        rise = p_next - p
        here = p + u * (rise + (1 - u) * ((1 - u) * (h - rise) - u * (h_next - rise)))
        return x + F.pad(here, (0, x.shape[-1] - here.shape[-1])).transpose(1, 2).to(x.dtype)

    def _solved(self, start: str, nodes: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """p and h [N,H,D] at tokens 0, stride, 2 stride ..."""
        parameters = tuple(self.parameters())
        if torch.compiler.is_compiling():  # a graph sees neither changes of parameters nor what is kept
            return self._solve(start, nodes, like)
        learning = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        if learning or any(p.is_inference() for p in parameters):  # the latter do not count their changes
            self.kept.clear()
            return self._solve(start, nodes, like)
        now = like.device, precise(like[:0], like).dtype, [p._version for p in parameters]
        known, then, solved = self.kept.get(start, ((), None, ((), ())))
        if now != then or len(solved[0]) < nodes or any(p is not q for p, q in zip(parameters, known, strict=True)):
            solved = self._solve(start, nodes, like)
            self.kept[start] = parameters, now, solved
        return solved

    def _solve(self, start: str, nodes: int, like: Tensor) -> tuple[Tensor, Tensor]:
        # Copies, which lie in memory alike wherever a checkpoint has put the parameters: the sums are then rounded alike.
        w1, b1, w2, b2, p = (precise(x, like).clone() for x in (self.w1, self.b1, self.w2, self.b2, getattr(self, start)))

        def h(s: float, p: Tensor) -> Tensor:
            hidden = torch.relu(F.linear(p, w1[:, :-1], b1 + s * w1[:, -1]))
            return F.linear(hidden, w2[:, :-1], b2 + s * w2[:, -1])

        ds, found = self.step * self.stride, []
        for n in range(nodes):
            s = n * ds
            h1 = h(s, p)
            found.append((p, h1))
            h2 = h(s + ds / 2, p + ds / 2 * h1)
            h3 = h(s + ds / 2, p + ds / 2 * h2)
            p = p + ds / 6 * (h1 + 2 * h2 + 2 * h3 + h(s + ds, p + ds * h3))
        return torch.stack([p for p, _ in found]), torch.stack([h for _, h in found])
