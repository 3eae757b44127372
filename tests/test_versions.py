"""Versions of transformers and torch: what the package asks for is what its README says was run."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("versions", ROOT / ".ci" / "versions.py")
versions = importlib.util.module_from_spec(spec)
spec.loader.exec_module(versions)
ROWS = versions.rows_in(versions.README.read_text())


@pytest.mark.parametrize("package", ["transformers", "torch"])
def test_the_oldest_that_the_package_asks_for_was_run(package):
    assert min(versions.numbers(row[package]) for row in ROWS) == versions.numbers(versions.floor(package))


def test_what_was_run_passed():
    assert len({(row["transformers"], row["torch"]) for row in ROWS}) == len(ROWS) > 1
    assert all(row["failed"] == "0" and int(row["passed"]) > 1000 for row in ROWS)


def test_the_core_is_there():
    assert all((ROOT / "tests" / f"{name}.py").is_file() for name in versions.CORE)


def test_a_row_takes_the_place_of_its_own():
    text = versions.README.read_text()
    assert versions.written(text, []) == text
    older = ROWS[-1] | {"transformers": "4.9.1", "passed": "7"}
    longer = versions.written(text, [older, ROWS[0] | {"passed": "3"}])
    assert versions.rows_in(longer) == [ROWS[0] | {"passed": "3"}, *ROWS[1:], older]
    assert versions.TABLE.sub("", longer) == versions.TABLE.sub("", text)


def test_no_version_is_compared():
    """What transformers has is looked for; its number says nothing of that."""
    compared = re.compile(r"packaging|is_\w+_version|parse_version|version_info|__version__\s*[<>]")
    assert not [path for path in (ROOT / "hf_posenc").rglob("*.py") if compared.search(path.read_text())]
