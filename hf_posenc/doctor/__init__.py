"""What a model is, what is wrong with it, and proof on the user's machine: every path that it would take there, against the definition.

`reading` makes a model without numbers of what a user names, `faults` and `found` look at it, `outlook` says what encodings would do,
`trials` tries them on a tiny twin, `checks` (with `subject`, `rows`) compares kernels, `costs` measures them; `examination` is all of that
for one model, `matrix` the trials for every model type. `report` is the text and the JSON, and documents its keys.
"""

from .cli import main, run
from .examination import diagnose
from .report import Report

__all__ = ["Report", "diagnose", "main", "run"]
