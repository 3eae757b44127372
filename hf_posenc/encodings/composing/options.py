"""The options that every encoding takes."""

from functools import partial

from ..base import COMPOSITIONS
from .by_head import on_heads
from .embedded import OPTION, embedded
from .tempered import tempered
from .windows import chunk, last, windowed

COMPOSITIONS[OPTION] = embedded
COMPOSITIONS.update(
    sliding_window=partial(windowed, last, "sliding_window"),
    attention_chunk=partial(windowed, chunk, "attention_chunk"),
    heads=on_heads,
    temperature=tempered,
)
