"""Contexts that are made to measure: exactly as many tokens as there is room for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice
from typing import NamedTuple, Protocol

Encode = Callable[[str], list[int]]
"""Tokens of a text, without those that a tokenizer puts around it."""
CLOSE = 32
"""Tokens that may be missing before a part of one more unit fills the rest."""


class Context(Protocol):
    """The text that a question is about."""

    def least(self, encode: Encode) -> int:
        """How many tokens the shortest has that holds the answer."""

    def fill(self, encode: Encode, room: int) -> list[int]:
        """Exactly `room` tokens, `least` or more."""


class Growing(NamedTuple):
    """A context of whole units, as many as there is room for, and a part of the next ones.

    Args:
        text: the context of n units.
        rest: what may follow that and be cut anywhere, some units long.
        units: of the shortest.
    """

    text: Callable[[int], str]
    rest: Callable[[int], str]
    units: int = 0

    def least(self, encode: Encode) -> int:
        return len(encode(self.text(self.units)))

    def fill(self, encode: Encode, room: int) -> list[int]:
        count = self.fitting(encode, room)
        whole = encode(self.text(count))
        if len(whole) == room:
            return whole
        found = encode(self.text(count) + self.rest(count))
        if len(found) < room:
            raise AssertionError(f"{room - len(found)} tokens are missing after {count} units")
        return found[:room]

    def fitting(self, encode: Encode, room: int) -> int:
        """A number of units that fit, with few tokens left over: by interpolation, as each try encodes all of the text."""
        low, fits = self.units, self.least(encode)
        high, beyond = low + 64, len(encode(self.text(low + 64)))
        while beyond <= room:
            low, fits = high, beyond
            high = high + max(64, int((room - beyond) / beyond * high * 1.1))
            beyond = len(encode(self.text(high)))
        while high - low > 1 and room - fits > CLOSE:
            middle = low + int((room - fits) / (beyond - fits) * (high - low))
            middle = min(max(middle, low + 1), high - 1)
            tokens = len(encode(self.text(middle)))
            if tokens <= room:
                low, fits = middle, tokens
            else:
                high, beyond = middle, tokens
        return low


class Stream(NamedTuple):
    """Sentences hidden anywhere in the tokens of one text, which goes round.

    Args:
        text: the text.
        start: where in it the context begins, as a share of it.
        hidden: sentences.
        depths: the share of the text before each.
    """

    text: str
    start: float
    hidden: tuple[str, ...]
    depths: tuple[float, ...]

    def least(self, encode: Encode) -> int:
        return sum(len(encode(sentence)) for sentence in self.hidden)

    def fill(self, encode: Encode, room: int) -> list[int]:
        filler, hidden = encode(self.text), [encode(sentence) for sentence in self.hidden]
        start = int(self.start * len(filler))
        return buried(hidden, self.depths, [*islice(cycle(filler), start, start + room - self.least(encode))])


def buried(hidden: list[list[int]], depths: tuple[float, ...], filler: list[int]) -> list[int]:
    """Filler with each of the parts after its share of it."""
    places = sorted(((round(depth * len(filler)), ids) for depth, ids in zip(depths, hidden, strict=True)), key=lambda place: place[0])
    found, last = [], 0
    for at, ids in places:
        found += filler[last:at] + ids
        last = at
    return found + filler[last:]
