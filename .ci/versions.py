#!/usr/bin/env python
"""The core of the suite on other versions of transformers and torch, each in an environment of its own.

python .ci/versions.py floor                    # the oldest that pyproject.toml allows
python .ci/versions.py --write 5.4.0 5.12.0     # and put into the README what came of it
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
CORE = (
    *("test_attention", "test_cache", "test_checkpoint", "test_conformance", "test_generation"),
    *("test_padding", "test_patching", "test_proof", "training/test_packing"),
)
"""The core of the suite: files in tests/ that go wherever transformers does."""
NEEDED = ("pytest>=8", "pytest-xdist", "hypothesis", "peft>=0.15")
"""What it is run with, beside the package."""
COLUMNS = ("transformers", "torch", "Python", "passed", "skipped", "failed")
TABLE = re.compile(r"(?<=<!-- versions -->\n).*?(?=\n<!-- /versions -->)", re.DOTALL)
ASK = "import platform, torch, transformers; print(transformers.__version__, torch.__version__.split('+')[0], platform.python_version())"


def floor(package: str) -> str:
    """The oldest version of a package that pyproject.toml allows."""
    found = re.search(rf'"{package}>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert found, package
    return found[1] + ".0" * (2 - found[1].count("."))


def rows_in(text: str) -> list[dict[str, str]]:
    """The rows of the table in the README."""
    found = TABLE.search(text)
    lines = found[0].splitlines() if found else []
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(COLUMNS, row, strict=True)) for row in cells[2:]]


def written(text: str, rows: list[dict[str, str]]) -> str:
    """`text` with `rows` in its table, in the place of those of the same versions; the newest first."""
    known = {(row["transformers"], row["torch"]): row for row in rows_in(text) + rows}
    ordered = sorted(known.values(), key=lambda row: [numbers(row["transformers"]), numbers(row["torch"])], reverse=True)
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([row[name] for name in COLUMNS] for row in ordered)]
    return TABLE.sub(lambda _: "\n".join(f"| {' | '.join(cells)} |" for cells in lines), text)


def numbers(version: str) -> list[int]:
    return [int(number) for number in version.partition("+")[0].split(".")]


def environment(transformers: str, torch: str) -> str:
    """The interpreter of a fresh environment with these versions."""
    folder = ROOT / f".venv-{transformers}-{torch}"
    venv.create(folder, clear=True, with_pip=True)
    python = str(folder / "bin" / "python")
    install = (python, "-m", "pip", "install", "--quiet")
    subprocess.run([*install, f"torch=={torch}"], check=True)
    subprocess.run([*install, "--editable", ".", f"transformers=={transformers}", *NEEDED], check=True, cwd=ROOT)
    return python


def run(python: str, workers: str) -> dict[str, str]:
    """Run the core with an interpreter; a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        files = [f"tests/{name}.py" for name in CORE]
        command = [python, "-m", "pytest", "-n", workers, "-rs", "-p", "no:cacheprovider", f"--junitxml={report}", *files]
        subprocess.run(command, cwd=ROOT, check=False)
        suite = ElementTree.parse(report).getroot()[0].attrib
    versions = subprocess.run([python, "-c", ASK], cwd=ROOT, check=True, capture_output=True, text=True, env=os.environ).stdout.split()
    skipped, failed = int(suite["skipped"]), int(suite["failures"]) + int(suite["errors"])
    told = (*versions, int(suite["tests"]) - skipped - failed, skipped, failed)
    return dict(zip(COLUMNS, map(str, told), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transformers", nargs="*", help="versions, or 'floor'")
    parser.add_argument("--torch", default=floor("torch"), help="its version (default: the oldest that pyproject.toml allows)")
    parser.add_argument("--python", help="run with this interpreter instead, whatever it has")
    parser.add_argument("--workers", default="2", help="processes (default: 2)")
    parser.add_argument("--write", action="store_true", help="put the results into the table of the README")
    given = parser.parse_args()
    asked = [floor("transformers") if version == "floor" else version for version in given.transformers]
    failed = False
    for python in [given.python] if given.python else (environment(version, given.torch) for version in asked):
        row = run(python, given.workers)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        failed |= row["failed"] != "0" or row["passed"] == "0"
        if given.write:
            README.write_text(written(README.read_text(), [row]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
