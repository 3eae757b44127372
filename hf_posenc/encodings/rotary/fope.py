from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, precise, register
from ..options import count, flag, positive
from .rope import cos_sin, power_frequencies
from .scaling import UnscaledRoPE


@register("fope")
class FoPE(UnscaledRoPE):
    """Fourier position embedding (Hua et al., 2024, arXiv:2412.17739, section 4; TsinghuaC3I/Fourier-Position-Embedding).

    The n pairs that come round within the native context L turn by a mixture of all their frequencies: cos(f_k t) becomes
    sum_j C_jk cos(f_j t), and sin likewise with S. The slower pairs do not turn. C and S are the identity plus normal numbers of standard
    deviation sigma sqrt(2 / (n (n + H))), for H heads; each layer and key-value head has its own, by default frozen.

    Args:
        sigma: scale of the mixture; the authors take 0.3, 0.4 and 0.6 for models of 60M, 180M and 1.2B parameters.
        learnable: C and S are trained, instead of drawn from the seed and left alone.
        seed: of the draw.

    Needs training from scratch, or fine-tuning. Differs from the authors' code: pairs that do not turn have sin = 0, where theirs have 1,
    which doubles what they say; n may be more than D / 4, where theirs mixes into D / 4 pairs at most; heads of a group share a mixture.
    """

    per_layer = True
    relative = False
    needs_training = "pretraining or fine-tuning"
    cos_mix: Tensor
    sin_mix: Tensor

    def __init__(self, geometry: Geometry, *, sigma: float = 0.3, learnable: bool = False, seed: int = 0):
        super().__init__(geometry)
        self.sigma, self.seed = positive("sigma", sigma, at_most=100.0), count("seed", seed, 0, (1 << 31) - 1)
        self.learnable = flag("learnable", learnable)
        floor = 2 * math.pi / geometry.max_positions
        self.turning = max(1, sum(self.theta ** (-2 * k / self.dim) >= floor for k in range(self.dim // 2)))
        if learnable:
            self.cos_mix, self.sin_mix = (nn.Parameter(mix) for mix in self._drawn())

    def _drawn(self) -> tuple[Tensor, Tensor]:
        """C and S, [G,n,n]."""
        g, n = self.geometry, self.turning
        generator = torch.Generator("cpu").manual_seed((self.seed << 16) + g.layer)
        noise = torch.randn(2, g.num_kv_heads, n, n, generator=generator, device="cpu") * math.sqrt(2 / (n * (n + g.num_heads)))
        cos, sin = torch.eye(n, device="cpu") + self.sigma * noise
        return cos, sin

    def inverse_frequencies(self) -> Tensor:
        frequencies = power_frequencies(self.theta, self.dim)
        return torch.where(torch.arange(self.dim // 2) < self.turning, frequencies, 0.0)

    def reset_buffers(self) -> None:
        super().reset_buffers()
        if not self.learnable:
            for name, mix in zip(("cos_mix", "sin_mix"), self._drawn(), strict=True):
                self.set_buffer(name, mix)

    def angles(self, pos: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = cos_sin(pos, self.inv_freq[: self.turning], self.attention_factor, like)
        cos, sin = cos @ precise(self.cos_mix, like), sin @ precise(self.sin_mix, like)
        still = (0, self.dim // 2 - self.turning)
        return F.pad(cos, still, value=1.0), F.pad(sin, still)

    def frequencies(self) -> None:
        return None
