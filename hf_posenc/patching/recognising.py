"""Which architecture a model has: that of its registered type, or the first guess about its structure that is shown to hold."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..architectures import ARCHITECTURES, Architecture
from ..architectures.base import decoder_of
from ..architectures.refused import REFUSED
from ..architectures.structure import candidates
from .configuration import written
from .proof import prove_structure
from .record import RECORD, Patch

_recognised: dict[tuple, Architecture] = {}


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The architecture of `model`, or of the decoder of text in it.

    Raises:
        ValueError: its type is not registered, and its structure is not one that can be patched.
    """
    decoder = decoder_of(model)
    for model_type in _types(model):
        if model_type in ARCHITECTURES:
            return ARCHITECTURES[model_type].variant(decoder.config)
    if live := decoder.__dict__.get(RECORD):
        return live.architecture
    if not isinstance(decoder, PreTrainedModel):
        raise ValueError(f"{_named(model)} is not supported: {type(decoder).__name__} is no model of transformers on its own")
    for model_type in _types(model):
        if model_type in REFUSED:
            raise ValueError(f"{_named(model)} is not supported: {REFUSED[model_type]}")
    key = type(decoder), written(decoder.config)
    if key not in _recognised:
        _recognised[key] = _shown(model, decoder)
    return _recognised[key]


def _shown(model: PreTrainedModel, decoder: PreTrainedModel) -> Architecture:
    faults = []
    for guess in candidates(decoder):
        try:
            prove_structure(Patch(decoder, guess, decoder))
        except Exception as error:  # whatever a forward of somebody else's raises when the guess is wrong
            faults.append(str(error))
        else:
            return guess
    why = f", and its structure is not that of a decoder which could be ({faults[0]})" if faults else ""
    raise ValueError(f"{_named(model)} is not supported{why}; hf_posenc.list_model_types() names those that are")


def _named(model: PreTrainedModel) -> str:
    return "model type " + " around ".join(repr(model_type) for model_type in dict.fromkeys(_types(model)))


def _types(model: PreTrainedModel) -> list[str]:
    """The model type of `model`, and that of the decoder of text in it."""
    return [part.config.model_type for part in (model, decoder_of(model)) if hasattr(part, "config")]
