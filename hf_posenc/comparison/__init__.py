"""The controlled study: same start, same data in the same order, many positional encodings, several seeds."""

from .arguments import CompareArguments, Variant, read_variants
from .study import Study, StudyError, main, prepare, run

__all__ = ["CompareArguments", "Study", "StudyError", "Variant", "main", "prepare", "read_variants", "run"]
