"""What is registered for all models: this package adds entries under names of its own, and changes none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_model

import hf_posenc

PROCESS = """
import json
import torch, transformers
from peft import mapping
from transformers import LlamaConfig, LlamaForCausalLM, masking_utils, modeling_rope_utils, modeling_utils
from transformers.models.auto import configuration_auto, modeling_auto
from transformers.models.llama import modeling_llama

OPTIONS = {"alibi": {}, "yarn": {"factor": 2.0}, "rerope": {"window": 4}, "shaw": {}, "learned": {"max_positions": 64}}
CODE = [modeling_llama, masking_utils, modeling_utils, modeling_rope_utils, torch.nn.functional, torch.nn.Module, torch.Tensor]
CODE += [transformers.PreTrainedModel, transformers.Cache, *(x for x in vars(modeling_llama).values() if isinstance(x, type))]

def entries():
    tables = {
        "attention": modeling_utils.ALL_ATTENTION_FUNCTIONS._global_mapping,
        "masks": masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping,
        "frequencies": modeling_rope_utils.ROPE_INIT_FUNCTIONS,
        "configurations": configuration_auto.CONFIG_MAPPING._extra_content,
        "model types": configuration_auto.CONFIG_MAPPING._mapping,
        "adapters": mapping.PEFT_TYPE_TO_TUNER_MAPPING,
        "configurations of adapters": mapping.PEFT_TYPE_TO_CONFIG_MAPPING,
    }
    for name, auto in vars(modeling_auto).items():
        if name.startswith("AutoModel") and getattr(auto, "_model_mapping", None) is not None:
            tables[name] = auto._model_mapping._extra_content
    return {table: dict(found) for table, found in [*tables.items(), *((str(code), vars(code)) for code in CODE)]}

def differences(before, after):
    for table, found in after.items():
        old = before[table]
        yield from ([table, "new", str(key)] for key in found.keys() - old.keys() - {"__slotnames__"})  # a note of copy
        yield from ([table, "changed", str(key)] for key in found.keys() & old.keys() if found[key] is not old[key])
        yield from ([table, "gone", str(key)] for key in old.keys() - found.keys())

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
model, ids = LlamaForCausalLM(LlamaConfig(vocab_size=61, **sizes)).eval(), torch.arange(3, 20)[None]
model(ids)
before = entries()
import hf_posenc
for name, options in OPTIONS.items():
    hf_posenc.patch(model, name, **options)(ids)
patched = list(differences(before, entries()))
hf_posenc.unpatch(model)(ids)
print(json.dumps([patched, list(differences(before, entries()))]))
"""


@pytest.mark.slow
def test_importing_patching_and_unpatching_add_entries_of_our_own_and_change_none():
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", PROCESS], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for found in json.loads(run.stdout.splitlines()[-1]):
        assert {kind for _, kind, _ in found} == {"new"}, found
        assert all("posenc" in key.lower() for _, _, key in found), found
        assert {"attention", "masks", "configurations", "AutoModelForCausalLM", "adapters"} <= {table for table, _, _ in found}


def test_kernels_of_liger_stay(tmp_path):
    """What it puts into the modules of a family is there after a patch and after its end, and another model has what it had."""
    liger = pytest.importorskip("liger_kernel.transformers")
    from transformers.models.llama import modeling_llama

    names = ("LlamaRMSNorm", "LlamaMLP", "apply_rotary_pos_emb")
    stock = {name: getattr(modeling_llama, name) for name in names}
    forward = modeling_llama.LlamaForCausalLM.forward
    try:
        liger.apply_liger_kernel_to_llama(rope=True, rms_norm=True, swiglu=True, fused_linear_cross_entropy=True)
        put_in = {name: getattr(modeling_llama, name) for name in names} | {"forward": modeling_llama.LlamaForCausalLM.forward}
        assert all(put_in[name] is not stock[name] for name in names)
        model = tiny_model("llama")
        kinds = [type(module) for module in model.modules()]
        for name in ("alibi", "yarn"):
            hf_posenc.patch(model, name, verify=False, **({"factor": 2.0} if name == "yarn" else {}))
        hf_posenc.unpatch(model)
        assert [type(module) for module in model.modules()] == kinds
        assert {name: getattr(modeling_llama, name) for name in names} | {"forward": modeling_llama.LlamaForCausalLM.forward} == put_in
    finally:
        for name, value in stock.items():
            setattr(modeling_llama, name, value)
        modeling_llama.LlamaForCausalLM.forward = forward
    assert torch.isfinite(tiny_model("llama")(torch.arange(3, 9)[None]).logits).all()
