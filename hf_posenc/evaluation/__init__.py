"""Evaluation of a model in memory, patched or stock: perplexity against length, text to measure it on, a demo model."""

from .corpus import CorpusError, Document, Text, dataset_texts, embedded_corpus, encode, read_texts
from .demo_model import DemoModelError, fetch_demo_model, resolve_model
from .perplexity import perplexity
from .result import Bucket, Result, Score

__all__ = [
    "Bucket",
    "CorpusError",
    "DemoModelError",
    "Document",
    "Result",
    "Score",
    "Text",
    "dataset_texts",
    "embedded_corpus",
    "encode",
    "fetch_demo_model",
    "perplexity",
    "read_texts",
    "resolve_model",
]
