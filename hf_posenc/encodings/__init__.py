"""One paper, one file. A module placed in a folder below is found, listed and tested without being named anywhere else."""

import sys

from ..registry import import_submodules
from .base import ENCODINGS, Block, Geometry, PositionalEncoding, Region, Text, create, current, options_of, register

import_submodules(sys.modules[__name__])

__all__ = ["ENCODINGS", "Block", "Geometry", "PositionalEncoding", "Region", "Text", "create", "current", "options_of", "register"]
