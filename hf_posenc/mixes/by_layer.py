from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .base import Mix, Part, as_part, register


@register("by_layer")
class ByLayer(Mix):
    """Any encodings in any layers: what `patch(model, {"rope": {}, "nope": {"layers": "3::4"}})` means.

    Args:
        parts: a list of {"name": ..., "layers": ...} with the options of each. Layers are as for `patch`; one part may leave them out, and
            has the rest. Parts for the same layers say by "heads" which of their heads they are for.

    Needs training as its parts do.
    """

    needs_training = "as its parts do"

    def __init__(self, *, parts: Sequence[str | Mapping[str, Any]] = ("rope", {"name": "nope", "layers": "3::4"})):
        if isinstance(parts, str | Mapping) or not isinstance(parts, Sequence) or not parts:
            raise ValueError(f'parts= is a list of {{"name": ..., "layers": ...}} with the options of each, got {parts!r}')
        self.given = [as_part(part) for part in parts]

    def parts(self, layers: tuple[int, ...]) -> Sequence[Part]:
        return self.given
