"""Proof on the user's machine: every path that a model would take there, against the definition, with what it costs."""

from .cli import main, run

__all__ = ["main", "run"]
