from __future__ import annotations

from torch import Tensor

from ..base import Geometry, PositionalEncoding, create, register


@register("pia")
class PIA(PositionalEncoding):
    """Position-infused attention (Press et al., 2021, arXiv:2012.15832; Shortformer).

    q_i = W_q (x_i + c PE(i)), k_j = W_k (x_j + c PE(j)), v_j = W_v x_j in every layer, with the sinusoids PE. Token embeddings get none.

    Args:
        theta: base of the frequencies.
        layout: of the sinusoids, as in `sinusoidal`; by default that of the authors' code.
        scale: c.
        unit: what c counts in, as in `sinusoidal`; with "embedding", the input x_i of the attention stands for the embedding.

    Needs training. Differs from the authors' code: positions count from 0, not from 2. There the layers cache the inputs of the stretch of
    text before, and infuse them anew, with the first positions; here positions go on, and the KV cache holds keys as they were made.
    """

    needs_training = "pretraining or fine-tuning"

    def __init__(
        self,
        geometry: Geometry,
        *,
        theta: float = 10_000.0,
        layout: str = "tensor2tensor",
        scale: float = 1.0,
        unit: str = "absolute",
    ):
        super().__init__(geometry)
        self.sinusoidal = create("sinusoidal", geometry, theta=theta, layout=layout, scale=scale, unit=unit)

    def infuse(self, x: Tensor, pos: Tensor) -> Tensor:
        return self.sinusoidal.embed(x, pos)
