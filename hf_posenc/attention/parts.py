"""Processes that have a part of each text (context parallelism)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

RING = "torch.distributed.tensor.experimental"
"""Where the attention comes from that PyTorch puts into the place of its own for the length of a `context_parallel` block."""


def check_whole() -> None:
    """Look whether each process has whole texts.

    Raises:
        ValueError: this call is within `context_parallel`: scores of the keys of other processes would be left out without a word.
    """
    if not torch.compiler.is_compiling() and str(F.scaled_dot_product_attention.__module__).startswith(RING):
        raise ValueError(
            "context parallelism leaves each process a part of the keys, which an encoding that acts in the attention function cannot see: "
            "use one that goes into the native slot or to the embeddings (`hf-posenc list`), or another way to share the work"
        )
