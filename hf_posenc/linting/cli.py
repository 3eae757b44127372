"""`hf-posenc lint`."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from ..files import check_writable, write_atomically
from .finding import ERROR
from .verb import lint


def run(given: Namespace) -> None:
    """Print, mend and write; ValueError where something that is left is an error."""
    if given.output:
        check_writable(Path(given.output).parent, "--output")
    found = lint(given.path, given.engine, fix=given.fix)
    found.show()
    if given.fix and not found.mended:
        print("nothing was written: nothing is certain")
    if given.output:
        write_atomically(given.output, json.dumps(found.to_dict(), indent=1) + "\n")
    if not found.passed:
        errors = dict.fromkeys(finding.rule for finding in found.findings if finding.severity == ERROR)
        raise ValueError(f"{found.document.name} will not everywhere be what it says ({', '.join(errors)})")
