"""Where positions meet scores: one attention function, one file for each way of computing it."""

from .choice import BACKENDS
from .entry import PREFIX, EncodingSite

__all__ = ["BACKENDS", "PREFIX", "EncodingSite"]
