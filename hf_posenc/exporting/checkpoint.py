"""Writing what an engine needs: a checkpoint of the model, or the entries alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..files import check_writable, write_atomically
from ..patching.record import ATTRIBUTE
from .base import Export


def write_checkpoint(model: PreTrainedModel, exported: Export, folder: str | os.PathLike) -> Path:
    """The weights of a model, under a configuration that tells the engine of its encoding.

    Raises:
        OSError: the folder cannot be written.
    """
    check_writable(folder)
    weights = own_weights(model)
    type(model).save_pretrained(model, folder, state_dict=weights)
    path = Path(folder) / "config.json"
    entries = json.loads(path.read_text()) | exported.fields
    write_atomically(path, json.dumps(entries, indent=2) + "\n")
    return Path(folder)


def own_weights(model: PreTrainedModel) -> dict[str, Any]:
    """The weights of a model without those of the encodings put into it."""
    return {name: weight for name, weight in model.state_dict().items() if not any(part.startswith(ATTRIBUTE) for part in name.split("."))}
