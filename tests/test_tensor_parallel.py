"""Tensor parallelism of transformers leaves each process a share of the heads: two processes on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import options_for, save_tiny
from transformers import AutoModelForCausalLM

import hf_posenc

RIGHT, REFUSED = ["yarn", "rope", "nope", "sinusoidal", "learned"], ["alibi", "shaw", "rerope", "ssmax"]
"""In the native slot, with none, and in the embeddings; biases, per-head and per-layer parameters, remaps."""
PROCESS = """
import sys, torch, hf_posenc
import torch.distributed as dist
from tiny import options_for
from transformers import AutoModelForCausalLM
folder, *names = sys.argv[1:]
found = {}
load = lambda path: AutoModelForCausalLM.from_pretrained(path, tp_plan="auto")
with torch.no_grad():
    for name in names:
        for how in ("patched", "saved"):
            torch.manual_seed(1)
            try:
                model = load(folder + "/" + name) if how == "saved" else hf_posenc.patch(load(folder), name, **options_for(name))
                assert model.model.layers[0].self_attn.q_proj.weight.to_local().shape[0] == 16  # of 32
                found[name, how] = model(torch.arange(5, 17)[None]).logits
            except ValueError as error:
                found[name, how] = str(error)
if dist.get_rank() == 0:
    torch.save(found, folder + "/found.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
@torch.no_grad()
def test_right_or_refused(tmp_path):
    folder, expected = save_tiny(tmp_path / "base"), {}
    for name in RIGHT + REFUSED:
        torch.manual_seed(1)
        model = hf_posenc.patch(AutoModelForCausalLM.from_pretrained(folder), name, **options_for(name))
        model.save_pretrained(Path(folder) / name)
        expected[name] = model(torch.arange(5, 17)[None]).logits
    here = Path(__file__).parent
    paths = {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", tmp_path / "process.py", folder]
    (tmp_path / "process.py").write_text(PROCESS)
    run = subprocess.run([*command, *RIGHT, *REFUSED], env=os.environ | paths, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = torch.load(Path(folder) / "found.pt")
    for name in RIGHT:
        for how in ("patched", "saved"):
            torch.testing.assert_close(
                found[name, how], expected[name], atol=1e-4, rtol=1e-4, msg=lambda text, at=(name, how): f"{at}: {text}"
            )
    assert all("tensor parallelism leaves each process a share" in found[name, how] for name in REFUSED for how in ("patched", "saved"))
