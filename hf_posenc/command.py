"""What the command lines of the recipes share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

INTERRUPTED = 130
MISTAKES = (ValueError, OSError, ImportError, FloatingPointError)


def exit_status(run: Callable[[], object]) -> int:
    """0 if `run` succeeds; 1 after a mistake of the user, told in one line on stderr, without a traceback; 130 after Ctrl-C."""
    try:
        run()
    except MISTAKES as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def parse_option(option: str, flag: str = "--option") -> tuple[str, Any]:
    """`window=1024` as ("window", 1024); the value is JSON, or else a string.

    Raises:
        ValueError: it is not of the form key=value.
    """
    name, equals, value = option.partition("=")
    if not equals or not name:
        raise ValueError(f"{flag} {option!r} is not of the form key=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def parse_answer(flag: str, word: str) -> bool:
    """`yes` or `no`.

    Raises:
        ValueError: it is neither.
    """
    if word not in ("yes", "no"):
        raise ValueError(f"{flag} is yes or no, got {word!r}")
    return word == "yes"
