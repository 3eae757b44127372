"""On a CUDA device: every path against its definition, and whole models against the CPU. `pytest -m gpu` on a machine that has one."""

import pytest
import torch
from test_flex import SCORING
from tiny import options_for, save_tiny, tiny_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, StaticCache

import hf_posenc
from hf_posenc.doctor.checks import examine
from hf_posenc.doctor.reading import Source
from hf_posenc.doctor.rows import LENGTH, TRAINED
from hf_posenc.doctor.subject import Subject
from hf_posenc.patching import patch_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")]
every_encoding = pytest.mark.cover("name")
CLOSE = {"atol": 1e-4, "rtol": 1e-3}


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """No verdict of an earlier run, and nothing compiled."""
    monkeypatch.setenv("HF_POSENC_CACHE", str(tmp_path))
    torch._dynamo.reset()


@pytest.mark.cover("name", "encoding_kind dtype", name=SCORING, dtype=["bfloat16", "float16", "float32"])
def test_every_path(name, dtype):
    subject = Subject.of(patch_of(Source(None).skeleton()), getattr(torch, dtype), torch.device("cuda"))
    checks = [*examine(subject, name, subject.encoding(name, LENGTH, TRAINED))]
    assert checks and not [check for check in checks if check.failure]


def patched(name):
    return hf_posenc.patch(tiny_model("llama"), name, layers="all", **options_for(name))


@every_encoding
@torch.no_grad()
def test_a_model_is_what_it_is_on_the_cpu(name, batch):
    model = patched(name)
    expected, real = model(**batch).logits, batch["attention_mask"].bool()
    tokens = model.generate(**batch, max_new_tokens=6, do_sample=False)
    model.cuda()
    there = {key: x.cuda() for key, x in batch.items()}
    assert_close(model(**there).logits.cpu()[real], expected[real], **CLOSE)
    assert model.generate(**there, max_new_tokens=6, do_sample=False).cpu().equal(tokens)


@every_encoding
@torch.no_grad()
def test_compiled_decoding_in_cuda_graphs(name):
    model, ids = patched(name).cuda(), torch.randint(2, 60, (2, 24), device="cuda")
    expected = model(ids, use_cache=False).logits
    cache = StaticCache(config=model.config, max_cache_len=32)
    model(ids[:, :20], past_key_values=cache, use_cache=True, position_ids=torch.arange(20, device="cuda")[None])
    compiled = torch.compile(model, mode="reduce-overhead")
    for t in range(20, 24):
        torch.compiler.cudagraph_mark_step_begin()
        step = compiled(ids[:, t : t + 1], past_key_values=cache, use_cache=True, position_ids=torch.tensor([[t]], device="cuda"))
        assert_close(step.logits[:, 0], expected[:, t], **CLOSE)


@torch.no_grad()
def test_a_device_map(tmp_path):
    folder, ids = save_tiny(tmp_path / "model"), torch.arange(5, 25)[None]
    expected = hf_posenc.patch(AutoModelForCausalLM.from_pretrained(folder), "alibi")(ids).logits
    model = hf_posenc.patch(AutoModelForCausalLM.from_pretrained(folder, device_map={"": 0}), "alibi")
    assert_close(model(ids.cuda()).logits.cpu(), expected, **CLOSE)
