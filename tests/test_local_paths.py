"""Names that can only be paths are looked for on this machine, and nowhere else."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hf_posenc.cli import RECIPES
from hf_posenc.evaluation import CorpusError
from hf_posenc.evaluation.corpus import open_dataset
from hf_posenc.evaluation.demo_model import resolve_model
from hf_posenc.evaluation.local_paths import looks_local

PATHS = ["./gone", "../gone", "~/gone", "/gone/model", "runs/of/mine", "here/gone", "gone.jsonl", "."]
HUB = ["gpt2", "HuggingFaceTB/SmolLM2-135M", "org/model.v2"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here" / "..")
    monkeypatch.setenv("HOME", str(tmp_path))


def test_paths_are_told_from_hub_ids():
    assert all(map(looks_local, PATHS)) and not any(map(looks_local, HUB))


@pytest.mark.parametrize("name", PATHS[:-1])
def test_a_path_with_nothing_there_is_refused_by_name(name):
    with pytest.raises(FileNotFoundError, match=f"there is no model at {name}: give the path"):
        resolve_model(name)
    with pytest.raises(CorpusError, match=f"there is no dataset at {name}: give the path"):
        open_dataset(name, None, "train")


def test_what_is_there_and_what_the_hub_may_have_stays_as_it_is(tmp_path):
    assert [resolve_model(name) for name in (*HUB, "here", "./here")] == [*HUB, "here", "./here"]
    assert resolve_model("~/here") == str(tmp_path / "here")


def test_no_recipe_asks_the_hub_for_a_path():
    """A socket stands for the hub: nothing may knock. (`compare` wants more flags; it opens models in the same way.)"""
    recipes = {name: ["--model", "./gone/model"] for name in RECIPES if name != "compare"} | {"inspect": ["./gone/model"]}
    each = "".join(f"assert main({[name, *flags]!r}) == 1\n" for name, flags in recipes.items())
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.setblocking(False)
        address = f"http://127.0.0.1:{hub.getsockname()[1]}"
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", f"from hf_posenc.cli import main\n{each}"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        with pytest.raises(BlockingIOError):
            hub.accept()
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(recipes) and all(line.startswith("error: there is no model at ./gone/model") for line in errors)
