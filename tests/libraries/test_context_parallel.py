"""Context parallelism of PyTorch: each process has a part of each text. Its ring attention has no kernel for a CPU"""

import pytest
import torch
from tiny import options_for, tiny_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel

import hf_posenc


@pytest.fixture
def mesh():
    """Of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["alibi", "rerope", "fire", "cope", "fox"])
@torch.no_grad()
def test_what_acts_in_attention_is_refused(name, mesh):
    model, ids = tiny_model("llama").eval(), torch.arange(16)[None]
    hf_posenc.patch(model, name, **options_for(name))
    expected = model(ids, use_cache=False).logits
    with context_parallel(mesh, buffers=[ids], buffer_seq_dims=[1]), pytest.raises(ValueError, match="a part of the keys"):
        model(ids, use_cache=False)
    assert torch.equal(model(ids, use_cache=False).logits, expected)


@torch.no_grad()
def test_the_native_slot_gets_as_far_as_the_stock_model(mesh):
    model, ids = tiny_model("llama").eval(), torch.arange(16)[None]
    said = []
    for _ in range(2):
        with context_parallel(mesh, buffers=[ids], buffer_seq_dims=[1]), pytest.raises(NotImplementedError) as error:
            model(ids, use_cache=False)
        said.append(str(error.value))
        hf_posenc.patch(model, "yarn", factor=2.0)
    assert said[0] == said[1] and "flash_attention_for_cpu" in said[0]
