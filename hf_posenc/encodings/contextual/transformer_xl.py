from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, PositionalEncoding, has_values, precise, register
from .shaw import at_distance

INIT_STD = 0.02


@register("transformer_xl")
class TransformerXL(PositionalEncoding):
    """Relative positions of Transformer-XL (Dai et al., 2019, arXiv:1901.02860, section 3.3).

    score(i, j) = [(q_i + u_h) k_j + (q_i + v_h) W_h R(i - j)] / sqrt(D), with R(t) = [sin(t f_k) | cos(t f_k)], f_k = 10000^(-2k/M), and
    u, v, W learned for each head of each layer.

    Needs training. Differs from the paper: u and v are not shared by the layers, as in XLNet.
    """

    inv_freq: Tensor
    relative = True
    per_layer = True
    data_dependent = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        if geometry.hidden_size % 2:
            raise ValueError(f"transformer_xl pairs sines and cosines of the model's width, but hidden_size is odd: {geometry.hidden_size}")
        heads, width = geometry.num_heads, geometry.head_dim
        self.u = nn.Parameter(torch.randn(heads, width) * INIT_STD)
        self.v = nn.Parameter(torch.randn(heads, width) * INIT_STD)
        self.w = nn.Parameter(torch.randn(heads, width, geometry.hidden_size) * INIT_STD)

    def reset_buffers(self) -> None:
        width = self.geometry.hidden_size
        self.set_buffer("inv_freq", 10_000.0 ** (-torch.arange(0, width, 2).float() / width))

    def context_bias(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, scaling: float) -> Tensor:
        longest = int((q_pos.max() - k_pos.min()).clamp(min=0)) if k_pos.numel() and has_values(k_pos) else 0
        by_distance = self._position_term(q, torch.arange(longest + 1, device=q.device), scaling)
        return at_distance(by_distance, q_pos, k_pos) + self._content_term(precise(k, q), scaling)

    def _content_term(self, k: Tensor, scaling: float) -> Tensor:
        """u k for keys [B,G,K,D], each serving H / G heads: [B,H,1,K]."""
        u = precise(self.u, k).view(k.shape[1], -1, k.shape[-1]) * scaling
        return (u @ k.transpose(-1, -2)).flatten(1, 2)[:, :, None]

    def _position_term(self, q: Tensor, distance: Tensor, scaling: float) -> Tensor:
        """(q + v) W R(t) for queries [B,H,Q,D] and distances t [L]: [B,H,Q,L]."""
        angle = precise(distance, q)[:, None] * precise(self.inv_freq, q)
        wave = torch.cat((angle.sin(), angle.cos()), -1).T
        q, w = precise(q, q) + precise(self.v, q)[:, None], precise(self.w, q) * scaling
        # The order of the products that needs fewer operations: to decode, project the query; in a block, the distances.
        return (q @ w) @ wave if q.shape[0] * q.shape[2] < q.shape[3] else q @ (w @ wave)
