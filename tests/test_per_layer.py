"""Encodings of which each layer has its own: they come, go, train, save and load as one patch."""

import dataclasses
import json

import pytest
import torch
from tiny import tiny_model
from transformers import AutoModelForCausalLM

import hf_posenc
from hf_posenc.encodings import ENCODINGS
from hf_posenc.encodings.rotary.rope import RoPE
from hf_posenc.patching import patch_of

both = pytest.mark.parametrize("arch", ["llama", "gpt2"])


@pytest.fixture
def ids(batch):
    return batch["input_ids"][1:]


def shaw(arch, **options):
    """Patched, with vectors large enough to matter."""
    model = hf_posenc.patch(tiny_model(arch), "shaw", layers="all", values=False, **options)
    with torch.no_grad():
        for encoding in encodings(model):
            encoding.table.mul_(4)
    return model


def encodings(model):
    return [p.encoding for p in patch_of(model).placements]


@both
def test_each_layer_has_its_own(arch):
    placements = patch_of(shaw(arch)).placements
    assert [(p.layers, p.attribute) for p in placements] == [((0,), "positional_encoding"), ((1,), "positional_encoding_1")]
    first, second = (p.encoding.table for p in placements)
    assert first.shape == second.shape and not torch.equal(first, second)


@both
@torch.no_grad()
def test_parameters_affect_only_their_layer(arch, ids):
    model = shaw(arch)
    before = model(ids, output_hidden_states=True).hidden_states
    encodings(model)[1].table.add_(torch.randn(17, 16))
    after = model(ids, output_hidden_states=True).hidden_states
    assert torch.equal(after[1], before[1]) and not torch.allclose(after[2], before[2])
    encodings(model)[0].table.add_(torch.randn(17, 16))
    assert not torch.allclose(model(ids, output_hidden_states=True).hidden_states[1], before[1])


@both
def test_gradients_reach_all_layers(arch, ids):
    model = shaw(arch)
    model(ids, labels=ids).loss.backward()
    for encoding in encodings(model):
        rows = encoding.table.grad.abs().sum(1)
        assert rows.isfinite().all() and rows[:-1].all()  # only the last token is 16 from another, and nothing is asked of it


@both
@torch.no_grad()
def test_saved_and_loaded(arch, ids, tmp_path):
    model = shaw(arch, max_distance=5)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)
    ours, theirs = hf_posenc.inspect(model), hf_posenc.inspect(again)
    assert (theirs.encodings, theirs.fingerprint) == (ours.encodings, ours.fingerprint)
    (request,) = json.loads((tmp_path / "config.json").read_text())["positional_encoding"]
    assert request == {"name": "shaw", "options": {"values": False, "max_distance": 5}, "layers": [0, 1]}


@torch.no_grad()
def test_some_layers_beside_others(ids, tmp_path):
    model = tiny_model("llama", num_hidden_layers=4)
    hf_posenc.patch(model, "shaw", layers=[0, 3], values=False)
    hf_posenc.patch(model, "alibi", layers=1)
    hf_posenc.patch(model, "fire", layers=2)
    assert [(e.name, e.layers) for e in hf_posenc.inspect(model).encodings] == [("shaw", (0, 3)), ("alibi", (1,)), ("fire", (2,))]
    assert [p.attribute for p in patch_of(model).placements] == ["positional_encoding", *(f"positional_encoding_{i}" for i in (1, 2, 3))]
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)
    hf_posenc.patch(model, "shaw", layers=[1, 2], values=False)
    assert [(e.name, e.layers) for e in hf_posenc.inspect(model).encodings] == [("shaw", (0, 3)), ("shaw", (1, 2))]
    hf_posenc.patch(model, "alibi", layers=[3])  # overlaps the first request, which goes whole
    assert [(e.name, e.layers) for e in hf_posenc.inspect(model).encodings] == [("shaw", (1, 2)), ("alibi", (3,))]
    assert [n for n in model.state_dict() if "posit" in n] == ["model.positional_encoding.table", "model.positional_encoding_1.table"]


@both
@torch.no_grad()
def test_unpatched(arch, ids):
    ids = ids[:, :12]
    stock, model = tiny_model(arch), shaw(arch)
    assert not torch.allclose(model(ids).logits, stock(ids).logits)
    with hf_posenc.patched(model, "nope", layers="all"):
        assert not encodings(model)[0].per_layer
    assert len(encodings(model)) == 2
    hf_posenc.unpatch(model)
    assert torch.equal(model(ids).logits, stock(ids).logits)
    assert list(model.state_dict()) == list(stock.state_dict())


@both
def test_inspected_as_one(arch):
    model = shaw(arch)
    report = hf_posenc.inspect(model)
    (live,) = report.encodings
    assert (live.name, live.layers, live.parameters) == ("shaw", (0, 1), 2 * 17 * 16)
    assert "patched: shaw, values=False on all layers, in the attention function, 544 parameters" in str(report)
    encodings(model)[1].table.data.add_(1)
    assert hf_posenc.inspect(model).fingerprint != report.fingerprint
    assert dataclasses.replace(hf_posenc.inspect(model), fingerprint="") == dataclasses.replace(report, fingerprint="")


def test_an_option_may_share_one():
    model = hf_posenc.patch(tiny_model("llama"), "fire", shared=True)
    assert [p.layers for p in patch_of(model).placements] == [(0, 1)]
    hf_posenc.patch(model, "fire")
    assert [p.layers for p in patch_of(model).placements] == [(0,), (1,)]


class OwnPace(RoPE):
    """A RoPE that is slower in each further head, and half as fast in each further layer."""

    name = "own_pace"
    per_layer = True

    def inverse_frequencies(self):
        paces = 0.5**self.geometry.layer / torch.arange(1, self.geometry.num_kv_heads + 1)
        return paces[:, None] * super().inverse_frequencies()


@torch.no_grad()
def test_frequencies_of_a_layer_and_of_a_head(ids, monkeypatch):
    monkeypatch.setitem(ENCODINGS._entries, OwnPace.name, OwnPace)
    model = hf_posenc.patch(tiny_model("llama"), OwnPace.name, layers="all")
    assert [(p.native, p.encoding.geometry.layer) for p in patch_of(model).placements] == [(False, 0), (False, 1)]
    first, second = (encoding.inv_freq for encoding in encodings(model))
    assert first.shape == (2, 8) and torch.equal(first, 2 * second)
    full, head = model(ids).logits, model(ids[:, :9], use_cache=True)
    tail = model(ids[:, 9:], past_key_values=head.past_key_values).logits
    torch.testing.assert_close(torch.cat((head.logits, tail), 1), full, rtol=1e-4, atol=1e-5)
