"""Where positions meet scores: one attention function, one file for each way of computing it."""

from .entry import BACKENDS, PREFIX, EncodingSite

__all__ = ["BACKENDS", "PREFIX", "EncodingSite"]
