"""Time and memory of the attention of one layer, beside those of stock attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..attention.entry import posenc_attention
from ..benchmarking import Call, Cost, free_memory, measure
from ..compat import create_causal_mask
from ..variants import STOCK
from .checks import Check, answers, first_line
from .subject import Subject

NATIVE = 2048
"""Tokens that the model counts as trained for, so that remaps are at work beyond them."""
REPEAT = 3


@torch.no_grad()
def costs(subject: Subject, labels: Sequence[str], length: int) -> tuple[dict[str, Cost], list[Check]]:
    """What a forward pass costs at so many tokens, one row, and the passes that fail; what does not fit in memory is missing."""
    states = 2 * sum(subject.geometry.head_dim * n for n in (subject.geometry.num_heads, subject.geometry.num_kv_heads))
    needed, free = states * length * subject.dtype.itemsize, free_memory(subject.device)
    if needed > free:
        print(f"{length:,} tokens are left out: inputs and output take {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free", flush=True)
        return {}, []
    q, k, v = subject.states(1, length, subject.device)
    pos = torch.arange(length, device=subject.device)[None]
    mask = create_causal_mask(subject.config, q[:, 0], None, None)

    def call(label: str) -> Call:
        encoding = None if label == STOCK else subject.encoding(label, length, NATIVE)
        site, more = subject.site(encoding), {} if encoding is None else subject.handed(encoding, q, k, pos)[1]
        return lambda: posenc_attention(subject.backend, site, q, k, v, mask, position_ids=pos, **more)

    calls = {label: call(label) for label in (STOCK, *labels)}
    failed = []
    for label in labels:
        try:
            calls[label]()
        except torch.OutOfMemoryError:
            continue  # `measure` says so
        except Exception as raised:  # whatever a compiler or a driver has to say
            choice = subject.choice(subject.encoding(label, length, NATIVE), length)
            failed.append(Check(subject.backend, label, *choice, f"{length:,} tokens", "forward", failure=first_line(raised)))
            del calls[label]
            if not answers(subject.device):
                return {}, failed
    return measure(calls, REPEAT, str(subject.device), f" at {length:,} tokens"), failed
