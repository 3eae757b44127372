"""Minutes that a search may take, and what it says meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Say = Callable[[str], None]


def silent(line: str) -> None:
    """Say nothing."""


def announced(line: str) -> None:
    """Print it now."""
    print(line, flush=True)


@dataclass
class Budget:
    """Of one search, from now on.

    Args:
        minutes: in all.
        say: called with a line for each measurement.

    Raises:
        ValueError: no minutes.
    """

    minutes: float
    say: Say = silent
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"budget is a number of minutes above 0, got {self.minutes}")

    @property
    def passed(self) -> float:
        """Seconds."""
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds."""
        return self.minutes * 60 - self.passed

    def told(self, line: str) -> None:
        """Say it, with the time."""
        self.say(f"[{self.passed / 60:.1f} of {self.minutes:.3g} min] {line}")
