"""Questions about a context of any length, made offline. A module placed here is found, listed and offered by the recipe."""

import sys

from ...registry import import_submodules
from .base import TASKS, Question, Task, create, names_of

import_submodules(sys.modules[__name__])

__all__ = ["TASKS", "Question", "Task", "create", "names_of"]
