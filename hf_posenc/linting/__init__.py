"""Linting: what every engine will make of a configuration, a GGUF or a training file, and what is lost there without a word.

`documents` reads a file, and what the model will have for a configuration (`axolotl`, `llama_factory`: by a training file); `case` is what
transformers and each engine make of that; `written` checks what is said, `served` what comes of it; `gguf` does both for a GGUF. `verb` is
all of that, `mending` writes what is certain.
"""

from .finding import Finding
from .report import Lint
from .verb import lint

__all__ = ["Finding", "Lint", "lint"]
