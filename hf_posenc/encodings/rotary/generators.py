"""What the rotations share that are exponentials of learned matrices."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base import Block, Geometry, PositionalEncoding, precise, widest
from ..options import count
from .rope import RoPE

BLOCK = 8
"""Dimensions that a generator mixes, unless they are given."""
LARGEST_BLOCK = 64


class Generated(PositionalEncoding):
    """R(p) = exp(sum over the axes a of p_a A_a), with a skew-symmetric A_a for each block of dimensions, key-value head and layer.

    The A_a start so that each pair of dimensions turns with one axis, at the frequency that it has in the model: on text alone the model
    computes what it did. Matrices are exponentiated in float64: squared again and again, float32 would round too much.

    Args:
        axes: their number n.
        block: dimensions b of a block, even; default 8, or less where the rotated width is no multiple of 8.
    """

    rotary = True
    relative = True  # on text, and on several axes where the generators commute
    per_layer = True
    starts_as = "rope"
    needs_training = "fine-tuning for positions on several axes, or where the model was trained with other positions; text alone needs none"
    start: Tensor
    order: Tensor

    def __init__(self, geometry: Geometry, axes: int, block: int | None):
        super().__init__(geometry)
        self.base = RoPE(geometry)
        self.width = math.gcd(geometry.rotary_dim, BLOCK) if block is None else count("block", block, 2, LARGEST_BLOCK)
        if self.width % 2 or geometry.rotary_dim % self.width:
            raise ValueError(f"block must be even and divide the {geometry.rotary_dim} rotated dimensions of a head, got {block!r}")
        self.axes = count("axes", axes, at_least=2, at_most=max(2, geometry.rotary_dim // 2))

    def axis_of_pairs(self) -> Tensor:
        """The axis that each pair turns with at first, [r/2] integers."""
        return torch.arange(self.geometry.rotary_dim // 2) % self.axes

    def generators(self, like: Tensor) -> Tensor:
        """A [n,G,r/b,b,b] in radians per token, in the precision that suits `like`."""
        raise NotImplementedError

    def reset_buffers(self) -> None:
        self.base.reset_buffers()
        g, frequencies = self.geometry, self.base.inverse_frequencies()
        first = F.one_hot(self.axis_of_pairs(), self.axes).T * (-frequencies if g.backwards else frequencies)
        quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        pairs = first.unflatten(1, (-1, self.width // 2))[..., None, None] * quarter  # [n,r/b,b/2,2,2]
        self.set_buffer("start", torch.stack([torch.stack([torch.block_diag(*x) for x in axis]) for axis in pairs]))
        self.set_buffer("order", self._order())

    def _order(self) -> Tensor:
        """The dimensions of a head [D], pair by pair, those that do not turn last."""
        g, pairs = self.geometry, self.geometry.rotary_dim // 2
        turned = torch.arange(2 * pairs) if g.interleaved else torch.arange(2 * pairs).view(2, pairs).T.flatten()
        offset = g.head_dim - 2 * pairs if g.rotates_last else 0
        return torch.cat((turned + offset, torch.arange(offset), torch.arange(offset + 2 * pairs, g.head_dim)))

    def cached_key(self, k: Tensor, pos: Tensor) -> Tensor:
        return self.turn(k, pos)

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        return self.turn(block.q, cast(Tensor, block.axes)), block.k

    def turn(self, x: Tensor, pos: Tensor) -> Tensor:
        """R(pos) x, of x [B,H,T,D] at positions [n,1 or B,T]."""
        wide, groups = widest(x.device), self.geometry.num_kv_heads
        exponent = torch.einsum("nbt,ngkij->bgtkij", pos.to(wide), self.generators(x).to(wide))
        turns = precise(matrix_exp(exponent.flatten(0, 3)).view(exponent.shape), x)[:, :, None] * self.base.attention_factor
        ordered = precise(x, x).index_select(-1, self.order).unflatten(1, (groups, -1))
        parts = ordered[..., : self.geometry.rotary_dim].unflatten(-1, (-1, self.width))
        # A sum of products, which autocast leaves in float32.
        turned = sum(turns[..., j] * parts[..., j : j + 1] for j in range(self.width))
        turned = torch.cat((cast(Tensor, turned).flatten(-2), ordered[..., self.geometry.rotary_dim :]), -1)
        return turned.flatten(1, 2)[..., self.order.argsort()].to(x.dtype)


def skew(upper: Tensor, width: int) -> Tensor:
    """Skew-symmetric matrices [...,b,b] with the entries `upper` [...,b(b-1)/2] above the diagonal, row by row."""
    rows, columns = torch.triu_indices(width, width, 1, device=upper.device)
    full = upper.new_zeros(*upper.shape[:-1], width, width)
    full[..., rows, columns] = upper
    return full - full.mT


@torch.library.custom_op("hf_posenc::matrix_exp", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def matrix_exp(x: Tensor) -> Tensor:
    """That of PyTorch, of matrices [...,b,b]. It copies norms to the host: CUDA graphs are told to leave it out of what they capture."""
    return torch.matrix_exp(x)


@matrix_exp.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def remember(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    """What the gradient needs."""
    ctx.save_for_backward(*inputs)


def gradient(ctx: Any, grad: Tensor) -> Tensor:
    """A block of the exponential of a larger matrix (Najfeld and Havel 1995; as in PyTorch)."""
    turned = ctx.saved_tensors[0].mT
    upper = torch.cat((turned, grad), -1)
    lower = torch.cat((torch.zeros_like(turned), turned), -1)
    return matrix_exp(torch.cat((upper, lower), -2))[..., : grad.shape[-1], grad.shape[-1] :]


matrix_exp.register_autograd(gradient, setup_context=remember)
