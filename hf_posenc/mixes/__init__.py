"""Encodings by layer, under a name. One paper or model, one file; a module placed here is found without being named anywhere else."""

import sys

from ..registry import import_submodules
from .base import MIXES, Mix, register

import_submodules(sys.modules[__name__])

__all__ = ["MIXES", "Mix", "register"]
