"""What a class must look like to be registered: a stage written with a slip would be no encoding at all, without a word."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from torch import nn

BY_BLOCK = ("context_bias", "mix", "normalise", "attended")
"""Stages that need the numbers of a block of queries and its keys."""
SCORING = ("bias", "regions", *BY_BLOCK)
"""Stages that no kernel has by itself."""
EMBEDDING = ("embed", "embed_text")
"""Stages that act on the embeddings."""
BEFOREHAND = (*EMBEDDING, "infuse")
"""Stages that act before there are queries and keys: what attention does with these is none of their business."""
STAGES = (*BEFOREHAND, "rotate", "meet", "value", *SCORING)
"""Any of which makes an encoding."""
OVERRIDABLE = (*STAGES, "cached_key", "state", "increments", "notes", "locate")
ALIKE = 0.8
"""How like a stage a name must be, from 0 to 1, to be taken for a slip."""


def check_class(cls: type[nn.Module], base: type[nn.Module]) -> None:
    """Refuse a subclass of `base` that has no stage and does not say so, or a method that looks like a stage and is none.

    Raises:
        ValueError: as above.
    """
    for method, stage in _slips(cls, base):
        raise ValueError(
            f"{cls.__name__}.{method} is not a stage; was {stage!r} meant? A helper of that name should start with an underscore. "
            f"Stages: {', '.join(OVERRIDABLE)}"
        )
    if not any(getattr(cls, stage) is not getattr(base, stage) for stage in STAGES) and not vars(cls).get("positionless"):
        raise ValueError(
            f"{cls.__name__} overrides none of the stages {', '.join(STAGES)}, so it would be no encoding at all; "
            "a class that is meant so declares positionless = True"
        )


def _slips(cls: type, base: type) -> Iterator[tuple[str, str]]:
    """Methods with the name of the stage that each may have been meant for."""
    for owner in cls.__mro__:
        for name in vars(owner) if owner not in base.__mro__ else ():
            stage = None if name.startswith("_") or hasattr(base, name) or not callable(getattr(owner, name)) else _meant(name)
            if stage is not None and stage not in vars(owner):  # beside the stage itself, it is a helper of it
                yield name, stage


def _meant(name: str) -> str | None:
    swapped = (stage for stage in OVERRIDABLE if sorted(stage) == sorted(name.lower()))
    near = difflib.get_close_matches(name.lower(), OVERRIDABLE, n=1, cutoff=ALIKE)
    return next(swapped, near[0] if near else None)
