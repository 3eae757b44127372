"""What training with `Trainer` needs beside it: packing, a loss in chunks, skipped positions, schedules, the loss at several lengths."""

from .lengths import LengthEvaluation, perplexities, window_nll
from .loss import chunk_loss, full_loss
from .packing import IGNORED, keeps_documents_apart, pack, separate_documents, unpack
from .positions import PoSE, RandomizedPositions
from .schedules import Anneal, ProgressiveLengths

__all__ = [
    "IGNORED",
    "Anneal",
    "LengthEvaluation",
    "PoSE",
    "ProgressiveLengths",
    "RandomizedPositions",
    "chunk_loss",
    "full_loss",
    "keeps_documents_apart",
    "pack",
    "perplexities",
    "separate_documents",
    "unpack",
    "window_nll",
]
