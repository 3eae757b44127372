"""What is scored given which context: the perplexity protocols of the literature, as windows over the tokens of a document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from ...registry import Registry


@dataclass(frozen=True)
class Window:
    """Tokens start ... stop - 1 as one input, of whose predictions those of the tokens first ... last - 1 are scored.

    Args:
        start, stop: the input, as indices of the document's tokens.
        first, last: the predicted tokens, start < first < last <= stop + 1: the last input token may predict the one after it.
        offset: position of the token `start`.
    """

    start: int
    stop: int
    first: int
    last: int
    offset: int = 0

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def scored(self) -> slice:
        """The input tokens that make the scored predictions, as indices within the window."""
        return slice(self.first - 1 - self.start, self.last - 1 - self.start)

    def cut(self, length: int) -> Window:
        """Its beginning, up to `length` tokens of input."""
        stop = min(self.stop, self.start + length)
        return replace(self, stop=stop, last=min(self.last, stop))


@dataclass(frozen=True)
class Protocol:
    """A rule that says which windows of a document are run at context length L, and which of their predictions count."""

    name: ClassVar[str]
    nested: ClassVar[bool] = False
    """The window at a shorter length is the beginning of that at a longer one: one pass gives the whole curve of a static model."""
    through_cache: ClassVar[bool] = False
    """Tokens go in one at a time, through the KV cache."""
    whole_documents: ClassVar[bool] = False
    """Documents longer than L are scored beyond L."""

    def windows(self, tokens: int, length: int, longest: int) -> Iterator[Window]:
        """The windows of a document of `tokens` tokens at context length `length`, where `longest` is the largest asked for."""
        raise NotImplementedError

    def tokens_needed(self, longest: int) -> int:
        """How many tokens a document must have, so that every point of a curve sees the same text."""
        return longest

    def check(self, length: int) -> None:
        """Raise ValueError where the protocol is not defined at this context length."""
        if length < 2:
            raise ValueError(f"lengths must be at least 2 tokens (one to see, one to predict), got {length}")


PROTOCOLS: Registry[type[Protocol]] = Registry("protocol")


def create_protocol(name: str, **options: Any) -> Protocol:
    """A protocol by name, with its own options.

    Raises:
        ValueError: no such protocol, an option it does not take, or a value below 1.
    """
    cls = PROTOCOLS[name]
    known = [field.name for field in fields(cls)]
    if unknown := [option for option in options if option not in known]:
        raise ValueError(f"protocol {name!r} has no option {unknown[0]!r}; its options are: {', '.join(known) or 'none'}")
    for option, value in options.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{option} must be a whole number of at least 1, got {value!r}")
    return cls(**options)


def protocol(name: str):
    """Decorator that files a protocol under its name."""

    def named(cls):
        cls.name = name
        return PROTOCOLS.register(name)(cls)

    return named


@protocol("prefix")
@dataclass(frozen=True)
class Prefix(Protocol):
    """The first L tokens of a document in one pass (YaRN, Peng et al. 2023, arXiv 2309.00071, tables 1 and 2; PoSE)."""

    nested = True

    def windows(self, tokens, length, longest):
        stop = min(tokens, length)
        yield Window(0, stop, 1, stop)


@protocol("decoded")
@dataclass(frozen=True)
class Decoded(Prefix):
    """The first L tokens one at a time through the KV cache (StreamingLLM, Xiao et al. 2023, arXiv 2309.17453, section 4.1)."""

    through_cache = True


@protocol("sliding")
@dataclass(frozen=True)
class Sliding(Protocol):
    """The whole document in windows of L tokens, of which only those new since the last window are scored (Press et al. 2021,
    arXiv 2108.12409, appendix B; Position Interpolation, Chen et al. 2023, arXiv 2306.15595). The first window is scored whole.

    Args:
        stride: tokens from one window to the next.
    """

    stride: int = 512
    whole_documents = True

    def windows(self, tokens, length, longest):
        scored = 1
        for start in range(0, tokens, self.stride):
            stop = min(start + length, tokens)
            yield Window(start, stop, scored, stop)
            if stop == tokens:
                return
            scored = stop

    def check(self, length):
        super().check(length)
        if self.stride >= length:
            raise ValueError(f"a stride of {self.stride} leaves the first of its tokens without context in a window of {length} tokens")


@protocol("sliding_all")
@dataclass(frozen=True)
class SlidingAll(Protocol):
    """The whole document in full windows of L tokens, every token of each scored, so that most count several times, with little context
    too (LongLoRA, Chen et al. 2023, arXiv 2309.12307; ChunkLlama, An et al. 2024, arXiv 2402.17463).

    Args:
        stride: tokens from one window to the next.
    """

    stride: int = 256
    whole_documents = True

    def windows(self, tokens, length, longest):
        for start in range(0, tokens - length + 1, self.stride):
            yield Window(start, start + length, start + 1, start + length)


@protocol("fixed_target")
@dataclass(frozen=True)
class FixedTarget(Protocol):
    """The same tokens at every L, the last ones of the first max(L) tokens, with L - target tokens of context before them
    (ReRoPE, Su 2023). It says most directly whether more context helps.

    Args:
        target: how many tokens are scored.
    """

    target: int = 256

    def windows(self, tokens, length, longest):
        yield Window(longest - length, longest, longest - self.target, longest)

    def check(self, length):
        super().check(length)
        if length <= self.target:
            raise ValueError(f"{self.target} target tokens need lengths above {self.target}, got {length}: ask for fewer with target=")


@protocol("disjoint")
@dataclass(frozen=True)
class Disjoint(Protocol):
    """Every token of the document once, in windows of L inputs that overlap in one token, the last one reaching back so that it is full:
    the rolling perplexity of the evaluation harness (lm-eval), which starts with BOS (`bos="always"` gives its numbers).
    """

    whole_documents = True

    def windows(self, tokens, length, longest):
        for first in range(1, tokens, length):
            last = min(first + length, tokens)
            yield Window(max(0, last - 1 - length), last - 1, first, last)

    def tokens_needed(self, longest):
        return 2


@protocol("offset")
@dataclass(frozen=True)
class Offset(Protocol):
    """The first tokens of a document, placed so that they end at position L, with nothing before them. A relative encoding gives the
    same number everywhere, a broken theta does not.

    Args:
        target: how many tokens the passage has; L = target is position 0.
    """

    target: int = 256

    def windows(self, tokens, length, longest):
        yield Window(0, self.target, 1, self.target, offset=length - self.target)

    def tokens_needed(self, longest):
        return self.target

    def check(self, length):
        super().check(length)
        if length < self.target:
            raise ValueError(f"a passage of {self.target} tokens cannot end at position {length}: ask for less with target=")
