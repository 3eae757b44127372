"""Putting encodings into one model, and taking them out again.

`record` holds what was changed, `asking` makes requests of what is asked for, `backends` says what can carry them, `configuration` says
it in the configuration, `saving` in a checkpoint, `installing` does and undoes it in the modules, `twin` and `running` try it elsewhere,
`projections` finds by trial what makes queries and keys, `placing` builds encodings for a model, `proof` shows that they work,
`recognising` tells what a model is, `verbs` is what a user calls, `reading` makes requests of what a file says. Each knows those before it.
"""

from .placing import apply
from .record import Patch, Placement, Request
from .verbs import patch, patch_of, patched, unpatch

__all__ = ["Patch", "Placement", "Request", "apply", "patch", "patch_of", "patched", "unpatch"]
