from __future__ import annotations

from ..base import register
from .constant import ByFactor


@register("yarn_scale")
class YaRNTemperature(ByFactor):
    """The temperature of YaRN (Peng et al., 2023, arXiv:2309.00071, section 3.4), without its frequencies.

    All queries are multiplied by 1/t = (1 + c ln s)^2. `yarn` has it already, as a factor 1 + c ln s on what is rotated of queries and of
    keys; where a model rotates but a part of a head, the rest of it has none there, and has it here.

    Args:
        factor: s, target context over native context.
        target_length: target context in tokens, instead of `factor`.
        coefficient: c.

    Works without training.
    """

    power = 2
