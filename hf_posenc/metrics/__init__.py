"""Metrics for the `evaluate` library."""

from pathlib import Path


def metric_path() -> str:
    """What `evaluate.load` takes for perplexity weighted by token (`metrics/token_perplexity`); no hub is needed."""
    return str(Path(__file__).parent / "token_perplexity")
