"""`hf-posenc lint`."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..command import exit_status
from ..exporting import ENGINES
from ..files import check_writable, write_atomically
from .verb import lint


def main(argv: list[str] | None = None) -> int:
    """Run the linter; returns the exit status: 0 if no finding is an error, 1 otherwise."""
    given = parser().parse_args(argv)
    passed: list[bool] = []
    status = exit_status(lambda: passed.append(run(given)))
    return status or int(passed != [True])


def parser() -> ArgumentParser:
    about = "What every engine will make of a configuration, and what is lost there without a word; no weights are read."
    ends = "Exit status: 0 if no finding is an error, 1 if one is, or nothing could be read."
    found = ArgumentParser(prog="hf-posenc lint", description=about, epilog=ends)
    found.add_argument("path", help="checkpoint, config.json, GGUF, YAML of Axolotl or LLaMA-Factory, hub id, or 'demo'")
    found.add_argument("--engine", nargs="+", choices=list(ENGINES), default=[], help="those that will serve it; default all")
    found.add_argument("--fix", action="store_true", help="write config.json with what is certain, and say what is not")
    found.add_argument("--output", help="JSON file to write")
    return found


def run(given: Namespace) -> bool:
    """Print, mend and write; whether nothing that is left is an error."""
    if given.output:
        check_writable(Path(given.output).parent, "--output")
    found = lint(given.path, given.engine, fix=given.fix)
    found.show()
    if given.fix and not found.mended:
        print("nothing was written: nothing is certain")
    if given.output:
        write_atomically(given.output, json.dumps(found.to_dict(), indent=1) + "\n")
    return found.passed
