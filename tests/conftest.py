import sys

import design
import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--all-pairs", action="store_true", help="all cases of every test that is marked `cover`")


def pytest_generate_tests(metafunc):
    """Give a test that is marked `cover` its cases, see `design`."""
    if marker := metafunc.definition.get_closest_marker("cover"):
        known = {"arch": design.FAMILIES, "name": list(design.ENCODINGS)}
        values = {parameter: known[parameter] for parameter in known if parameter in metafunc.fixturenames} | marker.kwargs
        everything = metafunc.config.getoption("all_pairs")
        cases = design.cases(values) if everything else design.cover(values, marker.args, salt=metafunc.function.__name__)
        metafunc.parametrize(list(values), cases, ids=["-".join(map(str, case)) for case in cases])


def pytest_runtest_setup(item):
    if item.get_closest_marker("cover") and {"arch", "name"} <= set(item.callspec.params):
        item.user_properties.append(("pair", [item.callspec.params["arch"], item.callspec.params["name"]]))


def pytest_terminal_summary(terminalreporter):
    """How many of all pairs met in this run, whichever process ran them."""
    reports = [report for found in terminalreporter.stats.values() for report in found if getattr(report, "when", "") == "call"]
    pairs = {tuple(value) for report in reports for key, value in report.user_properties if key == "pair"}
    if pairs:
        every = len(design.FAMILIES) * len(design.ENCODINGS)
        if missing := set(design.CHOSEN) - set(design.FAMILIES):
            terminalreporter.write_line(f"not built by this transformers: {', '.join(sorted(missing))}")
        terminalreporter.write_line(f"{len(pairs)} of {every} pairs of family and encoding were run (--all-pairs runs all)")


@pytest.fixture
def batch():
    """Two rows of odd length, the first padded on the left."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (2, 17), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def _everywhere(monkeypatch, name, answer):
    """Let a predicate of `encodings.base` answer so wherever it is imported."""
    for module in [module for path, module in sys.modules.items() if path.startswith("hf_posenc.") and hasattr(module, name)]:
        monkeypatch.setattr(module, name, lambda x: answer)


@pytest.fixture
def accelerator(monkeypatch):
    """A device at whose numbers the host cannot look: doing so raises, and so does an operand that was left on the host."""
    _everywhere(monkeypatch, "has_values", True)
    return torch.device("meta")


@pytest.fixture
def nothing_at_hand(monkeypatch):
    """Numbers on the CPU are treated as if they were on an accelerator."""
    _everywhere(monkeypatch, "at_hand", False)


@pytest.fixture
def single(monkeypatch):
    """Positions are never as wide as float64."""
    _everywhere(monkeypatch, "widest", torch.float32)
