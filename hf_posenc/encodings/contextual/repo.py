from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Block, Geometry, PositionalEncoding, precise, register
from ..options import number
from ..rotary.rope import RoPE, turn_pairs

INIT_STD = 0.02
NARROWER = 8


@register("repo")
class RePo(PositionalEncoding):
    """Context re-positioning (Li et al., 2025, arXiv:2512.14391, section 3; SakanaAI/repo).

    The model's own RoPE, at the positions z_t = kept * t + W_h (silu(G x_t) * C x_t), for each key-value head of each layer, from what the
    layer's attention is given; G and C are M / 8 wide.

    Args:
        kept: share of the token's own position. At 1, the default, the model starts as it was, because W starts at zero; the authors take
            it from 1 to 0 in the course of training.

    Works without training, and then changes nothing. Differs from the authors' code: heads that share a key share their positions; W starts
    at zero instead of N(0, 0.02), and what is kept of t is not taken off the learned position.
    """

    relative = True
    rotary = True
    per_layer = True
    caches = "raw"
    needs_training = "fine-tuning, for positions of its own"

    def __init__(self, geometry: Geometry, *, kept: float = 1.0):
        super().__init__(geometry)
        self.kept = number("kept", kept, 0.0, 1.0)
        self.starts_as = "rope" if kept == 1 else ""
        self.base = RoPE(geometry)
        middle, width = max(1, geometry.hidden_size // NARROWER), geometry.hidden_size
        self.gate, self.content = (nn.Parameter(torch.randn(middle, width) * INIT_STD) for _ in range(2))
        self.heads = nn.Parameter(torch.zeros(geometry.num_kv_heads, middle))

    def reset_buffers(self) -> None:
        self.base.reset_buffers()

    def state(self, x: Tensor, pos: Tensor) -> Tensor:
        gate, content, heads = (precise(weight, x) for weight in (self.gate, self.content, self.heads))
        x = precise(x, x)
        moved = F.linear(F.silu(F.linear(x, gate)) * F.linear(x, content), heads)
        return (moved + self.kept * pos[..., None]).transpose(1, 2)[..., None]

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        assert block.q_state is not None and block.k_state is not None
        each = block.q.shape[1] // block.k.shape[1]
        return self._turn(block.q, block.q_state.repeat_interleave(each, 1)), self._turn(block.k, block.k_state)

    def _turn(self, x: Tensor, place: Tensor) -> Tensor:
        """x [B,A,T,D] turned to the positions `place` [B,A,T,1]."""
        angle, factor = precise(place, x) * precise(self.base.inv_freq, x), self.base.attention_factor
        return turn_pairs(x, angle.cos() * factor, angle.sin() * factor, self.geometry)
