from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import flag
from .rope_nd import OnAxes


@register("mrope")
class MRoPE(OnAxes):
    """Multimodal rotary position embedding of Qwen2-VL (Wang et al., 2024, arXiv:2409.12191, section 2.1), and its interleaved form of
    Qwen3-VL.

    The first pairs of dimensions turn with time, the next with the height, the last with the width of a patch; each keeps the frequency
    that it has in the model. Positions come as `position_ids` of [3, batch, tokens], or [4, batch, tokens] with those of the text first;
    text alone gives the numbers of `rope`, bit for bit.

    Args:
        sections: pairs of each axis; default as theirs for heads of 128, [16, 24, 24] of 64 or [24, 20, 20] interleaved, and in proportion.
        interleaved: pairs of the three axes by turns, time, height, width, time ..., until an axis has no more; what is left is time's.

    Works without training on text.
    """

    axes = 3
    starts_as = "rope"

    def __init__(self, geometry: Geometry, *, sections: Sequence[int] | None = None, interleaved: bool = False):
        super().__init__(geometry)
        side = self.num_pairs * (5 if flag("interleaved", interleaved) else 6) // 16
        sections = [self.num_pairs - 2 * side, side, side] if sections is None else sections
        whole = isinstance(sections, Sequence) and not isinstance(sections, str) and all(type(n) is int and n >= 0 for n in sections)
        if not whole or len(sections) != 3 or sum(sections) != self.num_pairs:
            raise ValueError(f"sections are three numbers of pairs that add up to the {self.num_pairs} of a head, got {sections!r}")
        self.sections, self.interleaved = tuple(sections), interleaved
        if self.interleaved and any(3 * n + axis > self.num_pairs + 2 for axis, n in enumerate(sections[1:], 1)):
            raise ValueError(f"sections of {sections!r} have more pairs of height or width than every third of {self.num_pairs}")

    def axis_of_pairs(self) -> Tensor:
        pairs = torch.arange(self.num_pairs)
        if not self.interleaved:
            ends = torch.tensor(list(accumulate(self.sections)))
            return torch.searchsorted(ends, pairs, right=True)
        turn = pairs % 3
        room = torch.tensor(self.sections)[turn] * 3
        return torch.where((turn > 0) & (pairs < room), turn, 0)
