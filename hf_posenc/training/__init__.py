"""What training with `Trainer` needs beside it: packing, a loss in chunks, position schemes, schedules, evaluation at several lengths."""

from .lengths import LengthEvaluation, perplexities, window_nll
from .longce import LongCE
from .loss import chunk_loss, full_loss
from .packing import IGNORED, check_isolation, pack, separate_documents, unpack
from .schedules import Anneal, ProgressiveLengths, Stages
from .schemes import PositionScheme, create_scheme, describe_scheme, list_schemes, scheme
from .schemes.pose import PoSE
from .schemes.randomized import RandomizedPositions
from .tasks import TaskEvaluation

__all__ = [
    "IGNORED",
    "Anneal",
    "LengthEvaluation",
    "LongCE",
    "PoSE",
    "PositionScheme",
    "ProgressiveLengths",
    "RandomizedPositions",
    "Stages",
    "TaskEvaluation",
    "check_isolation",
    "chunk_loss",
    "create_scheme",
    "describe_scheme",
    "full_loss",
    "list_schemes",
    "pack",
    "perplexities",
    "scheme",
    "separate_documents",
    "unpack",
    "window_nll",
]
