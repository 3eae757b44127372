"""What the command lines of the recipes share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

from transformers import HfArgumentParser

Arguments = TypeVar("Arguments")
MISTAKES = (ValueError, OSError, ImportError, FloatingPointError)


def exit_status(run: Callable[[], object]) -> int:
    """0 if `run` succeeds; 1 after a mistake of the user, told in one line on stderr, without a traceback."""
    try:
        run()
    except MISTAKES as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def parse(kind: type[Arguments], prog: str, argv: list[str] | None) -> Arguments:
    """Flags, or one YAML or JSON file with the same names, as a dataclass.

    Args:
        argv: words of the command line; those of the process by default.
    """
    words = sys.argv[1:] if argv is None else argv
    parser = HfArgumentParser(cast(Any, kind), prog=prog, description=kind.__doc__)
    if len(words) == 1 and words[0].endswith((".yaml", ".yml")):
        return parser.parse_yaml_file(words[0])[0]
    if len(words) == 1 and words[0].endswith(".json"):
        return parser.parse_json_file(words[0])[0]
    return parser.parse_args_into_dataclasses(words, look_for_args_file=False)[0]


def parse_option(option: str) -> tuple[str, Any]:
    """`window=1024` as ("window", 1024); the value is JSON, or else a string.

    Raises:
        ValueError: it is not of the form key=value.
    """
    name, equals, value = option.partition("=")
    if not equals or not name:
        raise ValueError(f"--option {option!r} is not of the form key=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def listed(arguments: object, *names: str) -> None:
    """Wrap single values in lists: a YAML or JSON file may give one where a list is meant."""
    for name in names:
        if not isinstance(value := getattr(arguments, name), list):
            setattr(arguments, name, [value])
