"""What training with `Trainer` needs beside it: packing, a loss in chunks, skipped positions, schedules, the loss at several lengths."""

from .lengths import LengthEvaluation, perplexities, window_nll
from .loss import chunk_loss, full_loss
from .packing import IGNORED, check_isolation, pack, separate_documents, unpack
from .positions import PoSE, RandomizedPositions
from .schedules import Anneal, ProgressiveLengths

__all__ = [
    "IGNORED",
    "Anneal",
    "LengthEvaluation",
    "PoSE",
    "ProgressiveLengths",
    "RandomizedPositions",
    "check_isolation",
    "chunk_loss",
    "full_loss",
    "pack",
    "perplexities",
    "separate_documents",
    "unpack",
    "window_nll",
]
