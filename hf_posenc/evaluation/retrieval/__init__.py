"""Retrieval: can a model answer questions about its context, by length and depth."""

from ..tasks.passkey import PasskeyTask
from .prompts import Prompt, Prompts
from .result import Cell, RetrievalResult
from .retrieval import passkey, retrieval

__all__ = ["Cell", "PasskeyTask", "Prompt", "Prompts", "RetrievalResult", "passkey", "retrieval"]
