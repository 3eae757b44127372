from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import number, positive
from ..rotary.rope import RoPE


def outliers(weights: Tensor, num_kv_heads: int) -> list[float]:
    """How position-aware the heads of a layer are, for Ms-PoE: the share of keys with over three times the mean weight of the last query.

    The paper measures it on queries and keys that are not rotated, as those of layer i are in
    `with hf_posenc.patched(model, "nope", layers=i): weights = model(ids, output_attentions=True).attentions[i]`.

    Args:
        weights: attention weights [B,H,Q,K].
        num_kv_heads: G; of H / G query heads that share a key-value head, and of the rows of the batch, the mean counts.
    """
    last = weights[:, :, -1].double()
    share = (last > 3 * last.mean(-1, keepdim=True)).double().mean(-1)
    return share.unflatten(1, (num_kv_heads, -1)).mean((0, 2)).tolist()


@register("ms_poe")
class MsPoE(RoPE):
    """Ms-PoE, a scale of positions for each head (Zhang et al., 2024, arXiv:2403.04797, section 3 and eq. 2).

    Key-value head g, and the query heads that share it, stand at t / r_g, with r_g = low + (high - low) x_g / (G - 1): the model's own
    RoPE, its scaling included, squeezed more in some heads than in others, so that what lies in the middle of a text is found.

    Args:
        low: the smallest ratio, and that of a single head.
        high: the largest ratio.
        outliers: a number for each key-value head, as `outliers` measures them for a layer: x_g is how many heads have more, or as
            many and come before. Default ascending, x_g = G - 1 - g: the authors' head_type "normal".

    Works without training; the authors leave the first two layers as they are (`layers=slice(2, None)`). Differs from the paper: it
    measures anew on every prompt, so that a text and its beginning are read differently; here `outliers` are given once. And its
    algorithm gives head x the number of the head with the x-th most outliers, where its text has the reverse, as here. Differs from
    the authors' code: it has G for G - 1; and where heads share a key, it turns the queries by ratios of their own, and the key by
    that of the first.
    """

    needs_training = ""

    def __init__(self, geometry: Geometry, *, low: float = 1.2, high: float = 1.8, outliers: Sequence[float] | None = None):
        super().__init__(geometry)
        self.low, self.high = positive("low", low), positive("high", high)
        if self.high < self.low:
            raise ValueError(f"high must be at least low = {self.low:g}, got {self.high:g}")
        heads = geometry.num_kv_heads
        given = range(heads) if outliers is None else outliers
        if not isinstance(given, list | tuple | range) or len(given) != heads:
            raise ValueError(f"outliers is a list of {heads} numbers, one for each key-value head, got {outliers!r}")
        by_outliers = sorted(range(heads), key=[-number("each of outliers", x) for x in given].__getitem__)
        self.ratios = [self.low + (self.high - self.low) * by_outliers.index(g) / max(heads - 1, 1) for g in range(heads)]

    def inverse_frequencies(self) -> Tensor:
        return super().inverse_frequencies() / torch.tensor(self.ratios)[:, None]

    def rope_parameters(self):
        return None
