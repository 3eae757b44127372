from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..base import Geometry, PositionalEncoding, at_hand, has_values, precise, register
from ..options import flag

WIDTH = 32
THRESHOLD = 512.0
C = 0.1
EPS = 1e-6
PIECE, DEVICE_PIECE = 1 << 14, 1 << 20
"""Pairs of tokens whose hidden units are in memory at once: on a CPU in its cache, elsewhere in 128 MiB, which keep a device busy."""


@register("fire")
class FIRE(PositionalEncoding):
    """Functional interpolation (Li et al., 2023, arXiv:2310.04418, section 3.1).

    score(i, j) = q_i k_j / sqrt(D) + f_h(psi(i - j) / psi(max(i, L))), with psi(x) = log(|c| x + 1) and f a perceptron with 32 hidden
    ReLU units. f, c (at first 0.1) and L (at first 512 tokens) are learned.

    Args:
        shared: one f, c and L for all layers (FIRE-S).

    Needs training; then holds its perplexity beyond the length it was trained at.
    """

    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, shared: bool = False):
        super().__init__(geometry)
        self.per_layer = not flag("shared", shared)
        bound = WIDTH**-0.5
        self.w1, self.b1 = _uniform(1.0, WIDTH), _uniform(1.0, WIDTH)
        self.w2, self.b2 = _uniform(bound, geometry.num_heads, WIDTH), _uniform(bound, geometry.num_heads)
        self.c = nn.Parameter(torch.tensor(C))
        self.multiplier = nn.Parameter(torch.tensor(1.0))

    def ratio(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """What f sees: the distance on a logarithmic scale, 0 for the query itself and 1 for the first token past L."""
        c, threshold = precise(self.c, q_pos).abs(), (precise(self.multiplier, q_pos) * THRESHOLD).abs()
        distance = precise((q_pos - k_pos).clamp(min=0), q_pos)
        return torch.log1p(c * distance) / (torch.log1p(c * torch.maximum(precise(q_pos, q_pos), threshold)) + EPS)

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        w1, b1, w2, b2 = self.weights(q_pos)
        ratio, out = self.ratio(q_pos, k_pos), b2[h]
        for unit in range(WIDTH):
            out = out + torch.relu(w1[unit] * ratio + b1[unit]) * w2[h, unit]
        return out

    def bias_matrix(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not has_values(q_pos):  # a compiler fuses the plain definition
            return super().bias_matrix(q_pos, k_pos)
        ratio = self.ratio(q_pos[:, :, None], k_pos[:, None, :])
        out = Perceptron.apply(ratio.flatten(), *(self.bent(ratio) if at_hand(ratio) else self.weights(ratio)))
        return out.view(self.geometry.num_heads, *ratio.shape).transpose(0, 1)

    def weights(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """w1 [N], b1 [N], w2 [H,N] and b2 [H] of f, in the precision that suits `like`."""
        w1, b1, w2, b2 = (precise(x, like) for x in (self.w1, self.b1, self.w2, self.b2))
        return w1, b1, w2, b2

    def bent(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same of f between 0 and 1 with fewer units: those that bend there, and one for all that are linear there."""
        w1, b1, w2, b2 = self.weights(like)
        first, last = b1 > 0, w1 + b1 > 0
        bent, on = first != last, first & last
        # Sums of products, which autocast leaves in float32.
        slope, offset = ((w2[:, on] * x[on]).sum(1) for x in (w1, b1))
        w1, b1 = torch.cat((w1[bent], w1.new_ones(1))), torch.cat((b1[bent], b1.new_zeros(1)))
        return w1, b1, torch.cat((w2[:, bent], slope[:, None]), 1), b2 + offset


class Perceptron(torch.autograd.Function):
    """w2 relu(w1 z + b1) + b2 of numbers z [L], with w1 [N], b1 [N], w2 [H,N] and b2 [H]: [H,L].

    As products of matrices, a piece at a time: the hidden units of a whole block are never in memory, forward or backward.
    """

    @staticmethod
    def forward(ctx, z: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        ctx.save_for_backward(z, w1, b1, w2)
        out = z.new_empty(len(b2), len(z))
        for piece in _pieces(z):
            torch.addmm(b2[:, None], w2, _hidden(z[piece], w1, b1), out=out[:, piece])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        z, w1, b1, w2 = ctx.saved_tensors
        grad_z, grad_w1, grad_b1, grad_w2 = (torch.zeros_like(x) for x in (z, w1, b1, w2))
        for piece in _pieces(z):
            hidden = _hidden(z[piece], w1, b1)
            inner = (w2.T @ grad[:, piece]).mul_(hidden > 0)
            grad_z[piece] = w1 @ inner
            grad_w1 += inner @ z[piece]
            grad_b1 += inner.sum(1)
            grad_w2 += grad[:, piece] @ hidden.T
        return grad_z, grad_w1, grad_b1, grad_w2, grad.sum(1)


def _pieces(z: Tensor) -> list[slice]:
    step = PIECE if z.device.type == "cpu" else DEVICE_PIECE
    return [slice(start, start + step) for start in range(0, len(z), step)]


def _hidden(z: Tensor, w1: Tensor, b1: Tensor) -> Tensor:
    return torch.addcmul(b1[:, None], w1[:, None], z).relu_()


def _uniform(bound: float, *shape: int) -> nn.Parameter:
    """As `nn.Linear` starts."""
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
