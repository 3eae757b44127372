"""What is built of this repository: what the wheel holds, that the sdist gives the same, and types as a user's checker sees them."""

import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import torch

import hf_posenc

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_posenc"
GIVEN = """
import torch
import transformers

d: str
ids: torch.Tensor
texts: list[str]
base: transformers.PreTrainedModel
stock_base: transformers.PreTrainedModel
tokenizer: transformers.PreTrainedTokenizerBase
trainer: transformers.Trainer
"""
"""Names that the examples take for granted."""
MISTAKES = """
import hf_posenc
import torch

hf_posenc.patch(torch.nn.Linear(2, 2), 3)
hf_posenc.unpatch("model")
hf_posenc.perplexity(torch.nn.Linear(2, 2), [1], encodings={"yarn": {}}).curve
hf_posenc.create("yarn", hf_posenc.Geometry(64, 4)).nosuch()
hf_posenc.pacth
"""


def build(kind: str, source: Path, target: Path) -> Path:
    """A "wheel" or an "sdist", by the build backend that pyproject.toml names."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    return target / done.stdout.splitlines()[-1]


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What a build needs, and nothing that lies around."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("hf_posenc", "recipes"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_package_its_data_and_the_licence(wheel):
    held = contents(wheel)
    about = {name.partition("/")[2]: held.pop(name) for name in list(held) if ".dist-info/" in name}
    files = [path for pattern in ("**/*.*", "configs/*/*") for path in PACKAGE.glob(pattern) if path.is_file()]
    assert held == {str(path.relative_to(ROOT)): path.read_bytes() for path in files if "__pycache__" not in path.parts}
    kinds = {"hf_posenc/py.typed", "hf_posenc/__init__.pyi", "hf_posenc/configs/finetune/pi-1000.yaml"}
    assert kinds | {"hf_posenc/metrics/token_perplexity/token_perplexity.py"} <= held.keys()
    assert about["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes() and b"hf-posenc = hf_posenc.cli:main" in about["entry_points.txt"]
    metadata = message_from_bytes(about["METADATA"])
    assert metadata["Version"] == hf_posenc.__version__ and {"report", "gguf", "peft"} <= set(metadata.get_all("Provides-Extra"))


def test_the_sdist_builds_the_same_wheel(source, wheel, tmp_path):
    with tarfile.open(build("sdist", source, tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (tmp_path / "wheel").mkdir()
    assert contents(build("wheel", unpacked, tmp_path / "wheel")) == contents(wheel)


@pytest.mark.slow
def test_the_examples_of_the_readme_are_checked_against_the_wheel(wheel, tmp_path):
    """In an environment where nothing of ours is but the wheel, beside torch and transformers as they are here."""
    pytest.importorskip("mypy")
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True)
    (site / "beside.pth").write_text(str(Path(torch.__file__).parents[1]))
    code = "import hf_posenc, torch; print(hf_posenc.__file__)"
    assert str(site) in subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout

    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "examples.py").write_text("\n".join([GIVEN, *examples]))
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    options = ["--check-untyped-defs", "--allow-redefinition", "--python-executable", python]  # an example calls its model `model`
    command = [sys.executable, "-I", "-m", "mypy", *options, "examples.py", "mistakes.py"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    calls = [line for line, text in enumerate(MISTAKES.splitlines(), 1) if text.startswith("hf_posenc.")]
    assert len(examples) >= 5 and sorted(re.findall(r"^(\w+).py:(\d+): error", found, re.MULTILINE)) == [
        ("mistakes", str(line)) for line in calls
    ], found
