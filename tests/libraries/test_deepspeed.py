"""DeepSpeed under Trainer: two processes on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import options_for, save_tiny
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import hf_posenc

pytest.importorskip("deepspeed")
NAMES = ["alibi", "yarn", "shaw"]
ROWS = torch.arange(120).view(8, 15) % 50 + 3
PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from test_deepspeed import work
work(*sys.argv[2:])
"""


def patched(folder, name):
    torch.manual_seed(1)
    return hf_posenc.patch(AutoModelForCausalLM.from_pretrained(folder), name, **options_for(name))


def work(folder, way):
    """What each of the two processes does: two steps of two rows."""
    import deepspeed
    from transformers import Trainer, TrainingArguments, default_data_collator

    deepspeed.init_distributed("gloo")
    settings = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.1, "lr_scheduler_type": "constant", "optim": "sgd"}
    settings |= {"train_sampling_strategy": "sequential", "save_strategy": "no", "report_to": "none", "use_cpu": True, "max_grad_norm": 1e9}
    stage = {"stage": int(way[4]), "stage3_gather_16bit_weights_on_model_save": True}
    auto = dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto")
    for name in NAMES:
        early = None if "loads" in way else patched(folder, name)
        config = {"zero_optimization": stage, "zero_force_ds_cpu_optimizer": False, **auto}
        arguments = TrainingArguments(output_dir=f"{folder}/{name}", deepspeed=config, **settings)
        model = early or patched(folder, name)  # once there are arguments for stage 3, models are cut up as they are loaded
        rows = [{"input_ids": row, "labels": row} for row in ROWS.tolist()]
        trainer = Trainer(model, args=arguments, train_dataset=rows, data_collator=default_data_collator)
        trainer.train()
        trainer.save_model()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["zero2", "zero3", "zero3 loads"])
def test_training_and_saving(way, tmp_path):
    """The saved model is that of one process that sees all rows."""
    folder, here = save_tiny(tmp_path), Path(__file__).parent
    (tmp_path / "process.py").write_text(PROCESS)
    paths = [here.parent, here.parents[1], *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        tmp_path / "process.py",
        here,
        folder,
    ]
    run = subprocess.run([*command, way], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    for name in NAMES:
        model = patched(folder, name)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        before = model(ROWS).logits
        for rows in ROWS.split(4):
            model(rows, labels=rows).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / name)(ROWS).logits, model(ROWS).logits, atol=1e-3, rtol=1e-3)
        assert not torch.allclose(model(ROWS).logits, before, atol=0.1)
