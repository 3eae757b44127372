"""torch.compile of whole forward passes and of static-cache decoding, without a break in the graph; torch.export of the native slot."""

import pytest
import torch
from tiny import options_for, tiny_for
from torch.testing import assert_close
from transformers import StaticCache

import hf_posenc
from hf_posenc.encodings import ENCODINGS

WHOLE = [n for n in hf_posenc.list_encodings() if not ENCODINGS[n].data_dependent]
"""The others break the graph in a pass over many queries: what they compute with depends on the numbers in the position tensors."""
one_of_each = pytest.mark.cover("encoding_kind", name=WHOLE)
pytestmark = pytest.mark.slow
CLOSE = {"atol": 2e-5, "rtol": 2e-4}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def patched(name, arch="llama"):
    model = tiny_for(name, arch)
    torch.manual_seed(7)
    return hf_posenc.patch(model, name, layers="all", **options_for(name)), torch.randint(2, 60, (2, 24))


def check_decoding(model, ids, **options):
    """Steps with a static cache, each the same graph, against a pass over the whole text."""
    expected = model(ids, use_cache=False).logits
    cache = StaticCache(config=model.config, max_cache_len=32)
    model(ids[:, :20], past_key_values=cache, use_cache=True, position_ids=torch.arange(20)[None])
    compiled = torch.compile(model, fullgraph=True, **options)
    for t in range(20, 24):
        step = compiled(ids[:, t : t + 1], past_key_values=cache, use_cache=True, position_ids=torch.tensor([[t]]))
        assert_close(step.logits[:, 0], expected[:, t], **CLOSE)


@pytest.mark.cover("name")
@torch.no_grad()
def test_forward(name):
    model, ids = patched(name)
    expected = model(ids, use_cache=False).logits
    compiled = torch.compile(model, fullgraph=name in WHOLE, backend="eager")
    assert_close(compiled(ids, use_cache=False).logits, expected, **CLOSE)
    mask = torch.ones_like(ids).index_fill(1, torch.arange(4), 0)
    padded = model(ids, attention_mask=mask, use_cache=False).logits
    assert_close(compiled(ids, attention_mask=mask, use_cache=False).logits[:, 4:], padded[:, 4:], **CLOSE)


@pytest.mark.cover("encoding_kind arch", arch=["llama", "gpt2"])
@torch.no_grad()
def test_static_cache_decoding(name, arch):
    check_decoding(*patched(name, arch), backend="eager")


@one_of_each
def test_gradients(name):
    model, ids = patched(name)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    model(ids, labels=ids, use_cache=False).loss.backward()
    expected = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(ids, labels=ids, use_cache=False).loss.backward()
    for n, p in model.named_parameters():
        if expected[n] is not None:
            assert_close(p.grad, expected[n], atol=1e-4, rtol=1e-3, msg=lambda m, n=n: f"{n}: {m}")


@one_of_each
@torch.no_grad()
def test_export(name):
    """Whatever sits in the native slot, and all else that one graph can hold."""
    model, ids = patched(name)
    model.config.use_cache = False
    program = torch.export.export(model, (ids,), strict=False)
    assert_close(program.module()(ids).logits, model(ids).logits, **CLOSE)


@one_of_each
@torch.no_grad()
def test_through_the_real_compiler(name):
    model, ids = patched(name)
    expected = model(ids, use_cache=False).logits
    assert_close(torch.compile(model, fullgraph=True)(ids, use_cache=False).logits, expected, **CLOSE)


@pytest.mark.cover("encoding_kind", name=[n for n in hf_posenc.list_encodings() if n not in WHOLE])
@torch.no_grad()
def test_decoding_through_the_real_compiler(name):
    check_decoding(*patched(name), mode="reduce-overhead")
