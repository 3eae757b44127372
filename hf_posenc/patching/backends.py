"""Which attention backends can carry which encodings."""

from __future__ import annotations

from collections.abc import Sequence

from ..attention.columns import WIDEST
from ..attention.columns import WIDTH as COLUMNS
from ..encodings import PositionalEncoding
from ..encodings.naming import SCORING
from .record import Patch, Placement


def check_backend(record: Patch, backend: str, placements: Sequence[Placement]) -> None:
    """Raise ValueError if attention `backend` cannot carry one of the placements, or sees a share of the heads alone."""
    for placement in placements:
        if placement.in_attention and getattr(record.model, "_tp_size", None):
            raise ValueError(
                f"{placement.request.name!r} acts in the attention function, where tensor parallelism leaves each process a share of the "
                "heads: load the model without tp_plan; what goes into the native slot or to the embeddings works with it"
            )
        if placement.in_attention and (why := cannot_carry(record, backend, placement.encoding)):
            raise ValueError(
                f"{placement.request.name!r} changes the attention scores, which attention backend {backend!r} cannot carry{why}; "
                f"load the model with attn_implementation= one of {', '.join(record.architecture.seam.scores)}"
            )


def cannot_carry(record: Patch, backend: str, encoding: PositionalEncoding) -> str:
    """Why not, in words that go on from "cannot carry"; nothing if it can."""
    scores = [stage for stage in SCORING if encoding.has(stage)]
    seam = record.architecture.seam
    if backend in seam.scores or (backend in seam.flash and not scores):
        return ""
    if backend not in seam.flash or scores != ["bias"] or not encoding.has("columns"):
        return " at all"
    if getattr(record.backbone.config, "attn_logit_softcapping", None) is not None:
        return ", because its softcap would cap the bias too"
    if encoding.geometry.head_dim + COLUMNS > WIDEST:
        return f" in heads that are {encoding.geometry.head_dim} wide, because it needs {COLUMNS} more"
    return ""
