"""What the command lines of the recipes share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

CONFIGS = Path(__file__).parent / "configs"
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


def parse(kinds: Sequence[type], prog: str, argv: list[str] | None, defaults: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
    """The command line as one dataclass of each kind: flags, before them one YAML or JSON file or a preset, which they override.

    Args:
        kinds: dataclasses whose fields are the flags.
        prog: name of the recipe; its presets are `configs/PROG/*.yaml`.
        argv: words of the command line; those of the process by default.
        defaults: where this recipe's default is not the field's own.

    Raises:
        ValueError: the file is no mapping or has a name that no flag has, or there is no such preset.
    """
    from transformers import HfArgumentParser

    words = sys.argv[1:] if argv is None else argv
    usage = f"{prog} [SETTINGS.yaml | --preset NAME] [--flag value ...]"
    parser = HfArgumentParser(cast(Any, kinds), prog=prog, usage=usage, description=kinds[0].__doc__)
    parser.set_defaults(**(defaults or {}))
    if words[:1] == ["--preset"]:
        words = [str(preset(prog, *words[1:2])), *words[2:]]
    if words and words[0].endswith((".yaml", ".yml", ".json")):
        parser.set_defaults(**read_settings(words[0], known={action.dest for action in parser._actions}))
        words = words[1:]
    return parser.parse_args_into_dataclasses(words, look_for_args_file=False)


def preset(prog: str, name: str = "") -> Path:
    """The file of a preset of a recipe; ValueError with their names where there is none."""
    file = CONFIGS / prog / f"{name}.yaml"
    if not name or not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml"))) or "none"
        raise ValueError(f"--preset {name or '(nothing)'}: the presets of {prog} are: {known}")
    return file


def read_settings(path: str, known: set[str]) -> dict[str, Any]:
    """A YAML or JSON file of settings.

    Raises:
        ValueError: it is not a mapping, or has a name that no flag has.
    """
    import yaml

    settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings; write one `name: value` a line")
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"{path} has unknown settings: {', '.join(unknown)}")
    return settings


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
