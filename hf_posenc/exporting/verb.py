"""`hf_posenc.export`."""

from __future__ import annotations

from transformers import PreTrainedModel

from . import engines as engines
from .base import ENGINES, Export
from .rotation import rotation_of


def export(model: PreTrainedModel, to: str, *, freeze_at: int | None = None) -> Export:
    """What another library needs to compute the live encoding of a model, patched or not.

    Args:
        to: "transformers", "vllm", "sglang", "llama.cpp" or "mlx".
        freeze_at: length of a text, in tokens, whose frequencies are meant, for encodings that change with it.

    Raises:
        ValueError: that library cannot compute it, and why.
    """
    engine = ENGINES[to]
    try:
        return engine().export(rotation_of(model, freeze_at))
    except ValueError as error:
        raise ValueError(f"refused for {to}: {error}") from None
