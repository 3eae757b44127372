"""One file for each family that differs. A family equal to Llama's is one string.

`base` is their contract, `slots` what a patch puts into a native slot, `tables` what families with tables have in common, `structure` finds
families that are not registered, `refused` says which cannot be.
"""

import sys

from ..registry import import_submodules
from .base import ARCHITECTURES, Architecture, register

import_submodules(sys.modules[__name__])

__all__ = ["ARCHITECTURES", "Architecture", "register"]
