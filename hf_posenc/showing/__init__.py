"""Seeing what an encoding does: numbers, pictures, and one page that needs no other file."""

from .numbers import View
from .verb import Shown, show

__all__ = ["Shown", "View", "show"]
