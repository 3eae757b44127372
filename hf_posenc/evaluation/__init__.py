"""Evaluation of a model in memory, patched or stock: perplexity by any protocol, retrieval, text to measure on, a demo model."""

from .corpus import CorpusError, Document, Text, dataset_texts, embedded_corpus, encode, read_texts
from .demo_model import DemoModelError, fetch_demo_model, resolve_model
from .perplexity import PROTOCOLS, Bucket, Evaluator, KeyTokens, Result, Score, perplexity
from .result import Interrupted
from .retrieval import PasskeyTask, RetrievalResult, passkey, retrieval

__all__ = [
    "PROTOCOLS",
    "Bucket",
    "CorpusError",
    "DemoModelError",
    "Document",
    "Evaluator",
    "Interrupted",
    "KeyTokens",
    "PasskeyTask",
    "Result",
    "RetrievalResult",
    "Score",
    "Text",
    "dataset_texts",
    "embedded_corpus",
    "encode",
    "fetch_demo_model",
    "passkey",
    "perplexity",
    "read_texts",
    "resolve_model",
    "retrieval",
]
