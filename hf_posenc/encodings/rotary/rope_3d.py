from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, register, widest
from ..options import LARGEST_BASE, count, positive
from .rope import RoPE, cos_sin


@register("rope_3d")
class RoPE3D(RoPE):
    """3D rotary position encoding (Ma et al., 2024, arXiv:2406.09897, definition 1; maxindian/3D-RPE-Long-Contex-Modeling).

    Texts fall into chunks of c tokens. Token t = j c + m turns pair l by m theta_l + phi_j with phi_j = base^-j: as in RoPE within a chunk,
    by the difference of the places in their chunks, and a small phase alike for all pairs, between tokens of different ones. The model's
    own frequencies are kept.

    Args:
        chunk: c; default three quarters of the native context.
        base: of the phases.

    Needs fine-tuning beyond c tokens. Differs from the authors' code: it is dual chunk attention, whose queries stand elsewhere for keys of
    the chunk before and for those further back, and has the phases for the latter alone; here the formula of the paper is.
    """

    needs_training = "fine-tuning, where texts are longer than a chunk"
    relative = False

    def __init__(self, geometry: Geometry, *, chunk: int | None = None, base: float = 10_000.0):
        super().__init__(geometry)
        self.chunk = max(1, geometry.max_positions * 3 // 4) if chunk is None else count("chunk", chunk)
        self.phase_base = positive("base", base, at_least=1.0, at_most=LARGEST_BASE)

    def angles(self, pos: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        wide = pos.to(widest(pos.device))
        number = torch.div(wide, self.chunk, rounding_mode="floor")
        within = (wide - number * self.chunk)[..., None] * self.inv_freq.to(wide)
        one = torch.ones(self.dim // 2, device=pos.device)
        return cos_sin(within + self.phase_base ** -number[..., None], one, self.attention_factor, like)

    def frequencies(self) -> None:
        return None

    def rope_parameters(self):
        return None
