#!/usr/bin/env python
"""What works with what, for the README: what the tests with other libraries are called.

python .ci/libraries.py     # put it there
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TESTS = ROOT / "tests"
ELSEWHERE = ("test_adapters", "test_generation", "test_tensor_parallel", "test_engines")
"""Files outside tests/libraries that are about other libraries too."""
COLUMNS = ("with", "works", "refused", "needs")
TABLE = re.compile(r"(?<=<!-- libraries -->\n).*?(?=\n<!-- /libraries -->)", re.DOTALL)


def row(path: Path) -> tuple[str, ...]:
    """What a file of tests is about, what works and what is refused by the names of its tests, and packages that it is skipped without."""
    tree = ast.parse(path.read_text())
    names = [node.name.removeprefix("test_") for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    refused = [name for name in names if "refuse" in name]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip"]
    needs = {arg.value.partition(".")[0] for node in calls for arg in node.args if isinstance(arg, ast.Constant)}
    about = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ").rstrip(".")
    said = ("; ".join(name.replace("_", " ") for name in some) for some in ([n for n in names if n not in refused], refused))
    return about, *said, ", ".join(f"`{each}`" for each in sorted(needs))


def table() -> str:
    """In Markdown."""
    paths = [*sorted((TESTS / "libraries").glob("test_*.py")), *(TESTS / f"{name}.py" for name in ELSEWHERE)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *map(row, paths)))


def written(text: str) -> str:
    """`text` with the table in its place."""
    return TABLE.sub(lambda _: table(), text)


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
