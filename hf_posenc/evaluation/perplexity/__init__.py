"""Perplexity by length: what is scored given which context, key tokens, results."""

from .evaluator import Evaluator
from .key_tokens import KeyTokens
from .perplexity import perplexity
from .protocols import PROTOCOLS
from .result import Bucket, Result, Score

__all__ = ["PROTOCOLS", "Bucket", "Evaluator", "KeyTokens", "Result", "Score", "perplexity"]
