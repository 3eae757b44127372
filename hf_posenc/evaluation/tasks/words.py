"""Texts and lists of words that contexts are made of."""

from __future__ import annotations

import random
import re
from functools import lru_cache
from importlib.resources import files
from uuid import UUID

from ...extras import extra
from ..corpus import embedded_corpus, read_texts

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The sentences of Mohtashami and Jaggi 2023, and RULER's noise."""
ESSAY = "essay"
"""English that every Python has, in place of the essays or books of a benchmark."""


def text_of(name: str) -> str:
    """`essay`, or what is in a file.

    Raises:
        CorpusError: the file cannot be read.
    """
    return embedded_corpus() if name == ESSAY else read_texts([name])[0]


@lru_cache(maxsize=4)
def sentences(name: str) -> tuple[str, ...]:
    """The sentences of a text, with single spaces."""
    return tuple(re.split(r"(?<=[.!?]) (?=[^a-z])", re.sub(r"\s+", " ", text_of(name)).strip()))


@lru_cache(maxsize=3)
def word_list(kind: str) -> tuple[str, ...]:
    """RULER's words, from the package wonderwords.

    Args:
        kind: noun, adjective or verb.
    """
    with extra("tasks"):
        import wonderwords
    text = files(wonderwords).joinpath("assets", f"{kind}list.txt").read_text(encoding="utf-8")
    return tuple(text.split())


def uuid(chance: random.Random) -> str:
    """A random UUID."""
    return str(UUID(int=chance.getrandbits(128), version=4))
