"""Families whose stack mixes full and sliding-window layers under one set of frequencies, and families with one window for all."""

import pytest
import torch
from tiny import NATIVE, WINDOW, tiny_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import hf_posenc

CLOSE = {"atol": 2e-5, "rtol": 2e-4}
MIXED = ["gemma2", "gpt_oss", "gemma3_text"]


@pytest.mark.parametrize("arch", MIXED)
@pytest.mark.parametrize("name", ["nope", "alibi", "linear", "rerope"])
@torch.no_grad()
def test_default_is_the_full_layers(arch, name, batch, tmp_path):
    options = {"factor": 4.0} if name == "linear" else {}
    model = hf_posenc.patch(tiny_model(arch), name, **options)
    explicit = hf_posenc.patch(tiny_model(arch), name, layers=[1], **options)
    assert [e.layers for e in hf_posenc.inspect(model).encodings] == [(1,)]
    assert torch.equal(model(**batch).logits, explicit(**batch).logits)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert hf_posenc.inspect(again).fingerprint == hf_posenc.inspect(model).fingerprint


def test_a_family_with_one_window_is_patched_whole():
    model = hf_posenc.patch(tiny_model("mistral"), "alibi")
    assert model.config.sliding_window == WINDOW
    assert [e.layers for e in hf_posenc.inspect(model).encodings] == [(0, 1)]


@pytest.mark.parametrize("arch", ["mistral", "gemma2", "gemma3_text", "gpt_oss"])
@pytest.mark.parametrize("name", ["alibi", "rope", "rerope", "nope", "t5"])
@torch.no_grad()
def test_the_window_holds_under_every_encoding(arch, name, batch):
    """Two sliding layers see 2 (w - 1) tokens back, and not one more."""
    changes = {} if arch == "mistral" else {"layer_types": ["sliding_attention"] * 2}
    model = hf_posenc.patch(tiny_model(arch, **changes), name, layers="all")
    ids = batch["input_ids"][1:]
    reach = 2 * (WINDOW - 1)
    inside, outside = ids.clone(), ids.clone()
    inside[0, -1 - reach] = (ids[0, -1 - reach] - 2) % 57 + 3
    outside[0, : -1 - reach] = (ids[0, : -1 - reach] - 2) % 57 + 3
    last = model(ids).logits[0, -1]
    assert torch.equal(model(outside).logits[0, -1], last)
    assert not torch.equal(model(inside).logits[0, -1], last)


@pytest.mark.parametrize("arch", MIXED)
@torch.no_grad()
def test_one_layer_stretched_and_its_neighbour_not(arch, batch):
    """Positions times four undo a stretch by four on the patched layer; on the other the rotation must be the stock one."""
    stock, model = tiny_model(arch), hf_posenc.patch(tiny_model(arch), "linear", factor=4.0, layers=1)
    seen = {}

    def record(key):
        def hook(attention, args, kwargs, output):
            seen.setdefault(key, []).append(output[0])

        return hook

    for key, m in (("stock", stock), ("patched", model)):
        for layer in m.model.layers:
            layer.self_attn.register_forward_hook(record(key), with_kwargs=True)
    ids = batch["input_ids"][1:, :NATIVE]
    stock(ids), model(ids)
    assert_close(seen["patched"][0], seen["stock"][0], **CLOSE)
    assert not torch.allclose(seen["patched"][1], seen["stock"][1])
