"""What the schemes share that stretch a RoPE to a longer context."""

from __future__ import annotations

from typing import Any

from ..base import ENCODINGS, Geometry, create
from ..options import count, positive
from .rope import RoPE, scaled_already

LARGEST_FACTOR = 10_000.0
"""Target context over native context: 2k tokens to 20M."""


class UnscaledRoPE(RoPE):
    """A RoPE with other frequencies than the model's own, which does not stand on a scaling that the model already has."""

    needs_training = ""

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        if geometry.rope_type != "default":
            raise ValueError(scaled_already(self.name, geometry))

    def rope_parameters(self) -> dict[str, Any] | None:
        return None


class ScaledRoPE(RoPE):
    """A RoPE stretched by `factor` beyond the model's native context.

    Args:
        factor: target context over native context, from 1 to `LARGEST_FACTOR`.
        target_length: target context in tokens, instead of `factor`.
    """

    needs_training = ""
    composes = False
    """Whether it can stand on top of a scaling that the model already has."""

    def __init__(self, geometry: Geometry, *, factor: float | None = None, target_length: int | None = None):
        super().__init__(geometry)
        if geometry.rope_type != "default" and not self.composes:
            raise ValueError(scaled_already(self.name, geometry))
        self.factor = stretch(self.name, self.native_length, factor, target_length)

    def rope_parameters(self) -> dict[str, Any] | None:
        return None

    @property
    def native_length(self) -> int:
        """Context length in tokens that `factor` multiplies."""
        return self.geometry.max_positions

    @property
    def context_length(self) -> int:
        return round(self.factor * self.native_length)


def scheme(
    name: str, base: str, geometry: Geometry, factor: float | None, target_length: int | None, options: dict[str, Any] | None
) -> RoPE:
    """The encoding `base` that `name` is to stand on, one with frequencies [r/2] of its own.

    Args:
        factor, target_length: for `base`, if they are given; options: further ones, by name.

    Raises:
        ValueError: it has none, or one set for each length of a text, head or step of training.
    """
    if options is not None and not isinstance(options, dict):
        raise ValueError(f"options of {name!r} are those of {base!r} by name, got {options!r}")
    given = {"factor": factor, "target_length": target_length}
    fixed = isinstance(base, str) and base in ENCODINGS and base != name and issubclass(ENCODINGS[base], RoPE)
    encoding = create(base, geometry, **{k: v for k, v in given.items() if v is not None}, **(options or {})) if fixed else None
    if not isinstance(encoding, RoPE) or encoding.frequencies() is None:
        raise ValueError(f"base of {name!r} is an encoding with fixed frequencies, such as 'rope', 'ntk' or 'yarn', got {base!r}")
    return encoding


def stretch(name: str, native_length: int, factor: float | None, target_length: int | None) -> float:
    """The extension factor from either of its two spellings.

    Raises:
        ValueError: neither or both are given, or the result is not a number from 1 to `LARGEST_FACTOR`.
    """
    if (factor is None) == (target_length is None):
        raise ValueError(f"{name!r} takes either factor= or target_length= (native context: {native_length} tokens)")
    if target_length is not None:
        return count("target_length", target_length, native_length, round(LARGEST_FACTOR * native_length)) / native_length
    return positive("factor", factor, at_least=1.0, at_most=LARGEST_FACTOR)
