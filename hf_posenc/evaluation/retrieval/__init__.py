"""Retrieval: can a model find a number in its context, by length and depth."""

from .passkey import passkey
from .prompts import PasskeyTask, Prompt, Prompts
from .result import Cell, PasskeyResult

__all__ = ["Cell", "PasskeyResult", "PasskeyTask", "Prompt", "Prompts", "passkey"]
