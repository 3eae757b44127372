from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, PositionalEncoding, at_hand, has_values, precise, register
from ..options import FARTHEST, count
from .shaw import at_distance

INIT_STD = 0.02
AT_ONCE = 1 << 26
"""Sines and cosines in memory at once, where each row of a batch has its own."""


@register("transformer_xl")
class TransformerXL(PositionalEncoding):
    """Relative positions of Transformer-XL (Dai et al., 2019, arXiv:1901.02860, section 3.3).

    score(i, j) = [(q_i + u_h) k_j + (q_i + v_h) W_h R(i - j)] / sqrt(D), with R(t) = [sin(t f_k) | cos(t f_k)], f_k = 10000^(-2k/M), and
    u, v, W learned for each head of each layer.

    Args:
        clamp_len: tokens; all greater distances count as this one.

    Needs training. Differs from the paper: u and v are not shared by the layers.
    """

    inv_freq: Tensor
    relative = True
    per_layer = True
    data_dependent = True
    takes_reach = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, clamp_len: int | None = None):
        super().__init__(geometry)
        self.farthest = FARTHEST if clamp_len is None else count("clamp_len", clamp_len)
        if geometry.hidden_size % 2:
            raise ValueError(f"{self.name} pairs sines and cosines of the model's width, but hidden_size is odd: {geometry.hidden_size}")
        heads, width = geometry.num_heads, geometry.head_dim
        self.u = nn.Parameter(torch.randn(heads, width) * INIT_STD)
        self.v = nn.Parameter(torch.randn(heads, width) * INIT_STD)
        self.w = nn.Parameter(torch.randn(heads, width, geometry.hidden_size) * INIT_STD)

    def reset_buffers(self) -> None:
        width = self.geometry.hidden_size
        self.set_buffer("inv_freq", 10_000.0 ** (-torch.arange(0, width, 2).float() / width))

    def context_bias(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, scaling: float, reach: int | None = None) -> Tensor:
        content = self._content_term(precise(k, q), scaling)
        if reach is None and q.shape[2] == 1 and not at_hand(k_pos):
            return self._one_query(q, (q_pos - k_pos).clamp(0, self.farthest), scaling) + content
        if reach is None:
            reach = 1 + int((q_pos.max() - k_pos.min()).clamp(min=0)) if k_pos.numel() and has_values(k_pos) else 1
        by_distance = self._position_term(q, torch.arange(min(reach, self.farthest + 1), device=q.device), scaling)
        return at_distance(by_distance, q_pos, k_pos) + content

    def _content_term(self, k: Tensor, scaling: float) -> Tensor:
        """u k for keys [B,G,K,D], each serving H / G heads: [B,H,1,K]."""
        u = precise(self.u, k).view(k.shape[1], -1, k.shape[-1]) * scaling
        return (u @ k.transpose(-1, -2)).flatten(1, 2)[:, :, None]

    def _position_term(self, q: Tensor, distance: Tensor, scaling: float) -> Tensor:
        """(q + v) W R(t) for queries [B,H,Q,D] and distances t [L]: [B,H,Q,L]."""
        wave = self._wave(distance, q).T
        q, w = precise(q, q) + precise(self.v, q)[:, None], precise(self.w, q) * scaling
        # The order of the products that needs fewer operations: to decode, project the query; in a block, the distances.
        return (q @ w) @ wave if q.shape[0] * q.shape[2] < q.shape[3] else q @ (w @ wave)

    def _one_query(self, q: Tensor, distance: Tensor, scaling: float) -> Tensor:
        """The same for one query a row [B,H,1,D], each at distances of its own [1 or B,K]: [B,H,1,K]."""
        q = (precise(q, q) + precise(self.v, q)[:, None]) @ (precise(self.w, q) * scaling)
        keys = max(1, AT_ONCE // (len(distance) * self.w.shape[-1]))
        return torch.cat([q @ self._wave(part, q)[:, None].mT for part in distance.split(keys, 1)], -1)

    def _wave(self, distance: Tensor, like: Tensor) -> Tensor:
        """R(t) of distances t [...]: [...,M]."""
        angle = precise(distance, like)[..., None] * precise(self.inv_freq, like)
        return torch.cat((angle.sin(), angle.cos()), -1)
