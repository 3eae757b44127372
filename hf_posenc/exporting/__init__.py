"""Exporting: what other libraries need to compute a live encoding, and what they cannot."""

from .base import ENGINES, Engine, Export, Reading
from .verb import export

__all__ = ["ENGINES", "Engine", "Export", "Reading", "export"]
