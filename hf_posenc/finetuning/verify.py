"""Whether a saved model is the model that was trained: seen from a fresh process, which `reload` is."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import hf_posenc

from ..evaluation.token_nll import evaluating, input_device

PACKAGES = Path(hf_posenc.__file__).parents[1]


def reloads(model: Any, folder: Path, ids: torch.Tensor) -> bool:
    """Load `folder` in a fresh process, and compare its encoding and its logits on ids [1, L] with those of `model`.

    That process is told nothing but the folder: what it loads is what anyone will load. It prints what it finds.
    """
    search = os.pathsep.join([str(PACKAGES), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    with tempfile.TemporaryDirectory() as temporary:
        expected = Path(temporary) / "expected.pt"
        expect(model, ids, expected)
        command = [sys.executable, "-m", f"{__package__}.reload", str(folder), str(expected)]
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": search}, check=False).returncode == 0


def expect(model: Any, ids: torch.Tensor, file: Path) -> None:
    """Write what the reloaded model must agree with."""
    report = hf_posenc.inspect(model)
    how = {"dtype": model.dtype, "device": str(input_device(model)), "attention": report.attention}
    torch.save({"ids": ids, "logits": logits(model, ids), "fingerprint": report.fingerprint, **how}, file)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [1,L,V] on the CPU."""
    with evaluating(model):
        return model(input_ids=ids.to(input_device(model))).logits.float().cpu()
