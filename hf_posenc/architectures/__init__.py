"""One file for each family that differs. A family equal to Llama's is one string."""

import sys

from ..registry import import_submodules
from .base import ARCHITECTURES, Architecture, register

import_submodules(sys.modules[__name__])

__all__ = ["ARCHITECTURES", "Architecture", "register"]
