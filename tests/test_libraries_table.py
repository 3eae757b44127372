"""The table of the README is made of the names of the tests."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("libraries", ROOT / ".ci" / "libraries.py")
libraries = importlib.util.module_from_spec(spec)
spec.loader.exec_module(libraries)


def test_the_table_is_what_the_generator_gives():
    text = libraries.README.read_text()
    assert libraries.written(text) == text, "python .ci/libraries.py"


def test_a_row_says_what_a_file_tests(tmp_path):
    (tmp_path / "test_it.py").write_text(
        '"""Some library: all of it.\n\nMore."""\npytest.importorskip("some.part")\n'
        "def test_it_trains(): ...\ndef helper(): ...\ndef test_the_rest_is_refused(): ...\n"
    )
    assert libraries.row(tmp_path / "test_it.py") == ("Some library: all of it", "it trains", "the rest is refused", "`some`")
