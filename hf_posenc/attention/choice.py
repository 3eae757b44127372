"""Which way a layer computes its attention, and why: asked at every call, and by whoever wants to know beforehand."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import torch

from ..encodings import PositionalEncoding
from ..encodings.naming import BY_BLOCK

BIASABLE = ("eager", "sdpa", "flex_attention")
"""Backends through which a bias or a set of regions can be computed."""
FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
"""Backends that add nothing to the scores, but take wider keys."""
BACKENDS = (*BIASABLE, *FLASH)
"""Backends that a patched model may use for what leaves the scores alone."""
FLEX_DEVICES = ("cuda", "xpu", "mps")
"""Accelerators that PyTorch compiles flex attention for; ROCm calls itself cuda."""


class Choice(NamedTuple):
    """A path, by the name that `entry` tells it by, and the reason in words."""

    path: str
    why: str


class Asked(Protocol):
    """What the choice depends on beside the encoding.

    Attributes:
        place: type of the device, as `Call` has it. regional: there are regions with bounds. learning: gradients are recorded.
        fractional: positions lie between whole numbers. tileable: see `Call`. avoided: paths that have failed on this machine.
    """

    @property
    def backend(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def dropout(self) -> float: ...
    @property
    def regional(self) -> bool: ...
    @property
    def learning(self) -> bool: ...
    @property
    def fractional(self) -> bool: ...
    @property
    def tileable(self) -> bool: ...
    @property
    def avoided(self) -> frozenset[str]: ...


@dataclasses.dataclass(frozen=True)
class Prospect:
    """A call that has not been made: what `inspect` and the doctor ask about."""

    backend: str
    place: str
    dtype: torch.dtype
    regional: bool
    learning: bool = False
    dropout: float = 0.0
    fractional: bool = False
    tileable: bool = True
    avoided: frozenset[str] = frozenset()


def choose(encoding: PositionalEncoding, asked: Asked) -> Choice:
    """The cheapest way that is exact; by query block, which needs no kernel of its own, where that has failed on this machine."""
    choice = _cheapest(encoding, asked)
    if choice.path in asked.avoided:
        return Choice("blocks", f"`hf-posenc doctor` has seen the path {choice.path!r} fail here")
    return choice


def _cheapest(encoding: PositionalEncoding, asked: Asked) -> Choice:
    biased = encoding.has("bias", *BY_BLOCK)
    if asked.backend == "eager":
        return Choice("dense", "an eager model computes all scores")
    if not biased and not asked.regional:
        return Choice("stock", "a rotation alone leaves the kernel of the model as it is")
    if asked.backend in FLASH:
        return Choice("columns", "flash attention takes the bias as further columns of queries and keys")
    if asked.place != "cpu":
        obstacle = flex_obstacle(encoding, asked)
        return (
            Choice("blocks", obstacle) if obstacle else Choice("flex", "compiled flex attention has the bias or the regions in its kernel")
        )
    if asked.regional:
        learned = asked.learning and any(p.requires_grad for p in encoding.parameters())
        if asked.tileable and not biased and not learned:
            return Choice("regions", "one fused call for each region and block of queries, merged")
        return Choice(
            "blocks", UNFUSED if not asked.tileable else "the fused kernel has no regions with a bias, or with rotations that learn"
        )
    if encoding.has(*BY_BLOCK):
        return Choice("blocks", CONTENT)
    if encoding.relative and asked.tileable:
        return Choice("table", "a bias of the distance is a strided view of one table")
    return Choice("blocks", UNFUSED if encoding.relative else "the bias is no function of the distance")


CONTENT = "the scores depend on more than the positions and their products"
UNFUSED = "PyTorch's fused CPU kernel has no softcap, sinks or dropout, and wants a mask of causal pieces"


def flex_obstacle(encoding: PositionalEncoding, asked: Asked) -> str:
    """Why flex attention cannot do it on an accelerator; nothing if it can."""
    if encoding.has(*BY_BLOCK):
        return CONTENT
    if asked.place not in FLEX_DEVICES:
        return f"flex attention has no kernel for {asked.place}"
    if asked.dtype == torch.float64:
        return "flex attention has no kernel for float64"
    if asked.dropout:
        return "flex attention has no dropout"
    if asked.fractional:
        return "flex attention is handed whole positions"
    if asked.learning and asked.place == "mps":
        return "flex attention has no backward pass on mps"
    if asked.regional and encoding.data_dependent:
        return "how many regions there are depends on the length of the text"
    if asked.learning and not encoding.relative and encoding.has("bias") and any(p.requires_grad for p in encoding.parameters()):
        return "in flex attention every score would add to the same few gradients, one after the other"
    return ""
