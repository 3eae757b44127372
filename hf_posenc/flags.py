"""The flags of the recipes: fields of dataclasses, each declared once with what its values may be; settings files use their names."""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, get_type_hints

from transformers import HfArgumentParser

from .encodings.options import count, number
from .registry import suggestion

CONFIGS = Path(__file__).parent / "configs"
SUFFIXES = (".yaml", ".yml", ".json")
HELP_ALL = "--help-all"

Check = Callable[[str, Any], Any]
"""Raises ValueError for a value that a flag of that name cannot have. `Annotated[int, check]` declares it with the field; of a list, it
sees one value after another."""


def at_least(bound: int) -> Check:
    """The check of a whole number that is not below `bound`."""
    return partial(count, at_least=bound)


@dataclass(frozen=True)
class Foreign:
    """Flags of a dataclass that is not ours.

    Args:
        title: of the group that shows them.
        shown: those that people use, in the order of the help; the others are shown by `--help-all` alone.
        checks: of the values, by name.
        renamed: what this version calls fields that presets and users know by another name.
    """

    title: str
    shown: tuple[str, ...] = ()
    checks: Mapping[str, Check] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)


class FlagParser(HfArgumentParser):
    """The parser of a recipe: a mistake is a ValueError of one line, and every value is checked when it is read.

    Args:
        kinds: dataclasses whose fields are the flags.
        prog: what a user types to start it.
        foreign: those of `kinds` that are not ours.
        description: what it does; default the docstring of the first of `kinds`.
        first: a flag whose value may stand there without the flag.
    """

    def __init__(
        self, kinds: Sequence[type], prog: str, foreign: Mapping[type, Foreign], description: str | None, first: str | None = None
    ):
        usage = f"%(prog)s [SETTINGS{SUFFIXES[0]} | --preset NAME]{f' [{first.upper()}]' if first else ''} [--flag value ...]"
        about = description or kinds[0].__doc__
        super().__init__(cast(Any, kinds), prog=prog, usage=usage, description=about, allow_abbrev=False)
        self.foreign, self.everything = foreign, False
        self.renamed = {name: here for flags in foreign.values() for name, here in flags.renamed.items()}
        for name, here in self.renamed.items():
            self._option_string_actions[f"--{name}"] = self.action(here)
        for action in self._actions:
            if action.type is float:
                action.type = checked(action.type, action.option_strings[0], number)
        for kind in kinds:
            for name, check in declared(kind, foreign):
                action = self.action(name)
                action.type = checked(cast(Any, action.type), f"--{name}", check)
        if first is not None:
            self.add_argument(first, nargs="?", default=argparse.SUPPRESS)

    def action(self, name: str) -> argparse.Action:
        """The first flag that sets a field."""
        return next(action for action in self._actions if action.dest == name)

    def error(self, message: str) -> Any:
        raise ValueError(message)

    def read(self, words: Sequence[str]) -> tuple[Any, ...]:
        """One dataclass of each kind from the words of a command line."""
        if HELP_ALL in words:
            self.everything, words = True, ["--help"]
        *found, left = self.parse_args_into_dataclasses(list(words), look_for_args_file=False, return_remaining_strings=True)
        self.check_known(left)
        return tuple(found)

    def check_known(self, left: Sequence[str]) -> None:
        """Raise ValueError where words are left that belong to no flag."""
        if left:
            flag, known = left[0].partition("=")[0], [option for action in self._actions for option in action.option_strings]
            raise ValueError(f"unknown flag {flag!r}.{suggestion(flag, known)} `{self.prog} {HELP_ALL}` lists all of them")

    def words(self, path: str) -> list[str]:
        """A file of settings as words of a command line, each of them checked.

        Raises:
            ValueError: the file is no mapping, has a name that no flag has, or a value that its flag cannot have. It is named.
        """
        words: list[str] = []
        for name, value in read_settings(path, [*(action.dest for action in self._actions), *self.renamed]).items():
            here = self.setting(path, self.renamed.get(name, name), value)
            try:
                self.parse_known_args(here)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            words += here
        return words

    def setting(self, path: str, name: str, value: Any) -> list[str]:
        """The words for one entry of a file; none for one that is empty."""
        several = self.action(name).nargs == "+"
        if isinstance(value, list) and not several:
            raise ValueError(f"{path}: {name} takes one value, got a list: {value}")
        if value is None or value == []:
            return []
        if several:
            return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        for title, names in self.groups():
            formatter.start_section(title)
            formatter.add_arguments([shown(self.action(name)) for name in names])
            formatter.end_section()
        formatter.add_text("In the names of flags, - and _ are the same.")
        hidden = 0 if self.everything else sum(len(self.rest(kind)) for kind in self.foreign)
        if hidden:
            formatter.add_text(f"{hidden} more flags, of {' and '.join(kind.__name__ for kind in self.foreign)}: {HELP_ALL}")
        return formatter.format_help()

    def groups(self) -> Iterator[tuple[str, list[str]]]:
        """Titles and names: a group for each class of ours that declares flags, then the foreign ones."""
        own: list[Any] = [kind for kind in self.dataclass_types if kind not in self.foreign]
        seen: set[str] = set()
        for owner in (owner for kind in own for owner in reversed(kind.__mro__) if is_dataclass(owner)):
            names = [each.name for each in fields(owner) if each.name not in seen]
            seen.update(names)
            title = "Of this recipe" if owner.__doc__ == self.description else str(owner.__doc__).split("\n")[0].rstrip(".")
            yield title, names
        for kind, flags in self.foreign.items():
            yield flags.title, [*flags.shown]
            if self.everything:
                yield f"the rest of {kind.__name__}", self.rest(kind)

    def rest(self, kind: Any) -> list[str]:
        """The flags of a foreign class that are not among those shown."""
        return [each.name for each in fields(kind) if each.init and each.name not in self.foreign[kind].shown]


def shown(action: argparse.Action) -> argparse.Action:
    """The same flag as the help shows it: in one spelling, and with a default where there is one."""
    action = copy.copy(action)
    action.option_strings = action.option_strings[:1]
    if action.default is None or action.default is False or action.default == []:
        action.default = argparse.SUPPRESS
    return action


def declared(kind: type, foreign: Mapping[type, Foreign]) -> Iterator[tuple[str, Check]]:
    """The checks of the flags of a dataclass, with their names."""
    yield from (foreign[kind].checks if kind in foreign else {}).items()
    for name, hint in get_type_hints(kind, include_extras=True).items() if kind not in foreign else ():
        for check in getattr(hint, "__metadata__", ()):
            yield name, check


def checked(convert: Callable[[str], Any], flag: str, check: Check) -> Callable[[str], Any]:
    """`convert`, and then an `ArgumentError` where the check refuses the value."""

    def converted(word: str) -> Any:
        value = convert(word)
        try:
            check(flag, value)
        except ValueError as error:
            raise argparse.ArgumentError(None, str(error)) from None
        return value

    converted.__name__ = getattr(convert, "__name__", repr(convert))  # argparse says "invalid int value"
    return converted


def parse(
    kinds: Sequence[type],
    prog: str,
    argv: list[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    foreign: Mapping[type, Foreign] | None = None,
    description: str | None = None,
    first: str | None = None,
) -> tuple[Any, ...]:
    """The command line as one dataclass of each kind: flags, before them one YAML or JSON file or a preset, which they override.

    Args:
        kinds: dataclasses whose fields are the flags; the docstring of each is the title of its group in the help.
        prog: what a user types to start the recipe, as "hf-posenc compare"; its presets are `configs/compare/*.yaml`.
        argv: words of the command line; those of the process by default.
        defaults: where this recipe's default is not the field's own.
        foreign: those of `kinds` that are not ours.
        description: what the recipe does; default the docstring of the first of `kinds`.
        first: a flag whose value may stand there without the flag.

    Raises:
        ValueError: a flag that there is not, a value that its flag cannot have, a file that is no mapping, no such preset.
    """
    words = sys.argv[1:] if argv is None else argv
    parser = FlagParser(kinds, prog, foreign or {}, description, first)
    parser.set_defaults(**(defaults or {}))
    if words[:1] == ["--preset"]:
        words = [str(preset(Path(prog.split()[-1]).stem, *words[1:2])), *words[2:]]
    if words and words[0].endswith(SUFFIXES):
        words = [*parser.words(words[0]), *words[1:]]
    return parser.read(words)


def preset(recipe: str, name: str = "") -> Path:
    """The file of a preset of a recipe; ValueError with their names where there is none."""
    file = CONFIGS / recipe / f"{name}.yaml"
    if not name or not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml"))) or "none"
        raise ValueError(f"--preset {name or '(nothing)'}: the presets of {recipe} are: {known}")
    return file


def read_settings(path: str, known: Sequence[str]) -> dict[str, Any]:
    """A YAML or JSON file of settings.

    Raises:
        ValueError: it cannot be read, is not a mapping, or has a name that no flag has.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        settings = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as settings: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings; write one `name: value` a line")
    if unknown := sorted(str(name) for name in settings if name not in known):
        raise ValueError(f"{path} has unknown settings: {', '.join(unknown)}.{suggestion(unknown[0], list(known))}")
    return settings
