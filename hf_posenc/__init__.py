"""hf_posenc: swap the positional encoding of a Hugging Face decoder in one line, undo it, save it and load it again."""

from .checkpoint import register_auto_classes
from .encodings import Geometry, PositionalEncoding, Region, create, register
from .inspection import describe, inspect, list_encodings
from .metrics import metric_path
from .patching import patch, patched, unpatch

# last, because the evaluation measures with the names above
from .evaluation import perplexity  # isort: skip

__all__ = [
    "Geometry",
    "PositionalEncoding",
    "Region",
    "create",
    "describe",
    "inspect",
    "list_encodings",
    "metric_path",
    "patch",
    "patched",
    "perplexity",
    "register",
    "unpatch",
]
__version__ = "0.1.0"

register_auto_classes()
