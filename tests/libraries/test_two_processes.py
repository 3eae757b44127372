"""DDP and FSDP2: two processes on a CPU, with and without parameters in the encoding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from tiny import options_for, save_tiny
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import hf_posenc

NAMES = ["alibi", "yarn", "t5", "shaw"]
"""Without parameters, in the attention and in the native slot; in one module for all layers, and in one for each."""
ROWS = torch.arange(60).view(4, 15) % 50 + 3
WAYS = ["ddp", "fsdp2", "fsdp2 with lora"]
PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from test_two_processes import work
work(sys.argv[2])
"""


def patched(folder, name):
    torch.manual_seed(1)
    return hf_posenc.patch(AutoModelForCausalLM.from_pretrained(folder), name, **options_for(name))


def trained(model, rows):
    """Two steps on `rows`; the logits of all rows then."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model(input_ids=ROWS).logits.detach()


def lora(model):
    torch.manual_seed(3)
    return peft.get_peft_model(model, peft.LoraConfig(r=2, task_type="CAUSAL_LM", modules_to_save=hf_posenc.learned_modules(model) or None))


def cut_up(model):
    """As FSDP2 does: each layer, and the rest."""
    from torch.distributed.fsdp import fully_shard

    for layer in hf_posenc.patching.patch_of(model).backbone.layers:
        fully_shard(layer)
    return fully_shard(model)


def work(folder):
    """What each of the two processes does."""
    from accelerate import Accelerator
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    accelerator, said = Accelerator(cpu=True), {}
    own = ROWS[accelerator.process_index :: 2]
    for name in NAMES:
        try:
            hf_posenc.patch(cut_up(AutoModelForCausalLM.from_pretrained(folder)), name, **options_for(name))
        except ValueError as error:
            said[f"patch {name}"] = str(error)
        for way in WAYS:
            model, target = patched(folder, name), f"{folder}/{name} {way}"
            if way == "ddp":
                logits = trained(accelerator.prepare(model), own)
                whole = model.state_dict()
            else:
                model = cut_up(lora(model) if "lora" in way else model)
                logits = trained(model, own)
                model.reshard()
                try:
                    hf_posenc.inspect(model)
                except ValueError as error:
                    said[f"inspect {name}"] = str(error)
                whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
            if accelerator.is_main_process:
                model.save_pretrained(target, state_dict=whole)
                torch.save(logits, f"{target}/logits.pt")
    if accelerator.is_main_process:
        Path(folder, "said.json").write_text(json.dumps(said))
    accelerator.end_training()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, here = save_tiny(tmp_path_factory.mktemp("base")), Path(__file__).parent
    (folder / "process.py").write_text(PROCESS)
    paths = {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[1])]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", folder / "process.py", here, folder]
    run = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_training_gathering_and_loading(way, folder):
    """Weights and encoding are those of one process that sees all rows."""
    for name in NAMES:
        model, target = patched(folder, name), folder / f"{name} {way}"
        before, there = model(ROWS).logits, torch.load(target / "logits.pt")
        assert_close(there, trained(lora(model) if "lora" in way else model, ROWS), atol=1e-3, rtol=1e-3)
        load = peft.AutoPeftModelForCausalLM if "lora" in way else AutoModelForCausalLM
        again = load.from_pretrained(target)
        assert_close(again(input_ids=ROWS).logits, there)
        assert not torch.allclose(there, before, atol=0.1)


@pytest.mark.slow
def test_parameters_that_fsdp_does_not_know_are_refused(folder):
    said = json.loads((folder / "said.json").read_text())
    assert {key for key in said if key.startswith("patch")} == {"patch t5", "patch shaw"}
    assert all("patch the model before it is cut up" in said[key] for key in ("patch t5", "patch shaw"))
    assert {key for key in said if key.startswith("inspect")} == {"inspect t5", "inspect shaw"}
    assert all("model.unshard()" in said[key] for key in ("inspect t5", "inspect shaw"))
