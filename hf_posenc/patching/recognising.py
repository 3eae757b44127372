"""Which architecture a model has: that of its registered type, or the first guess about its structure that is shown to hold."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..architectures import ARCHITECTURES, Architecture
from ..architectures.structure import candidates
from .proof import prove_structure, written
from .record import RECORD, Patch

_recognised: dict[tuple, Architecture] = {}


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The architecture of `model`.

    Raises:
        ValueError: its type is not registered, and its structure is not one that can be patched.
    """
    model_type = model.config.model_type
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    if live := model.base_model.__dict__.get(RECORD):
        return live.architecture
    key = type(model.base_model), written(model.config)
    if key not in _recognised:
        _recognised[key] = _shown(model)
    return _recognised[key]


def _shown(model: PreTrainedModel) -> Architecture:
    faults = []
    for guess in candidates(model):
        try:
            prove_structure(Patch(model, guess, guess.backbone(model)))
        except Exception as error:  # whatever a forward of somebody else's raises when the guess is wrong
            faults.append(str(error))
        else:
            return guess
    why = f", and its structure is not that of a decoder which could be ({faults[0]})" if faults else ""
    raise ValueError(f"model type {model.config.model_type!r} is not supported{why}. Supported: {', '.join(ARCHITECTURES)}")
