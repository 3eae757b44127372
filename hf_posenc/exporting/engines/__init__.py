"""One engine, one file. A module placed here is found, listed and tested without being named anywhere else."""

import sys

from ...registry import import_submodules

import_submodules(sys.modules[__name__])
