"""A name that has changed goes on working everywhere, says what it is called now, and is written down by the new one."""

import json
import warnings
from typing import ClassVar

import pytest
import torch
from tiny import save_tiny, tiny_model
from transformers import AutoModelForCausalLM

import hf_posenc
from hf_posenc.encodings import ENCODINGS
from hf_posenc.encodings.bias.alibi import ALiBi
from hf_posenc.mixes import MIXES, Mix
from hf_posenc.mixes import register as register_mix
from hf_posenc.variants import read_plan

NEW, OLD = ("steep", {"scale": 3.0}), ("slanted", {"steepness": 3.0})


@pytest.fixture(autouse=True)
def renamed_for_now():
    @hf_posenc.register("steep", formerly=["slanted"])
    class Steep(ALiBi):
        """ALiBi with other slopes."""

        renamed_options: ClassVar = {"steepness": "scale"}

        def __init__(self, geometry, *, scale: float = 2.0):
            super().__init__(geometry)
            self.scale = scale

        def bias(self, h, q_pos, k_pos):
            return self.scale * super().bias(h, q_pos, k_pos)

    @register_mix("now_and_then", formerly=["then"])
    class NowAndThen(Mix):
        """One encoding in the first layer."""

        renamed_options: ClassVar = {"start": "first"}

        def __init__(self, *, first: str = "nope"):
            self.first = first

        def parts(self, layers):
            return [{"name": self.first, "layers": [layers[0]]}, {"name": "slanted"}]

    yield
    for registry, new, old in ((ENCODINGS, "steep", "slanted"), (MIXES, "now_and_then", "then")):
        registry._entries.pop(new)
        registry._former.pop(old)


@torch.no_grad()
def logits(model):
    return model(torch.arange(5, 25)[None]).logits


def said(call):
    """What a call returns, and the warnings it gives."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = call()
    return result, {str(each.message) for each in found if each.category is FutureWarning and "is called" in str(each.message)}


BOTH = {"encoding 'slanted' is called 'steep' now", "option of 'steep', 'steepness' is called 'scale' now"}


def test_a_patch_by_old_names_is_that_by_the_new_ones():
    new, silence = said(lambda: hf_posenc.patch(tiny_model("llama"), NEW[0], **NEW[1]))
    old, words = said(lambda: hf_posenc.patch(tiny_model("llama"), OLD[0], **OLD[1]))
    assert not silence and words == BOTH
    assert torch.equal(logits(old), logits(new)) and not torch.equal(logits(old), logits(hf_posenc.patch(tiny_model("llama"), "steep")))
    assert str(hf_posenc.inspect(old)) == str(hf_posenc.inspect(new)) and "slanted" not in str(hf_posenc.inspect(old))


def test_a_mix_and_what_is_in_it():
    old, words = said(lambda: hf_posenc.patch(tiny_model("llama"), "then", start="rope"))
    new = hf_posenc.patch(tiny_model("llama"), {"rope": {"layers": [0]}, "steep": {}})
    assert {"mix 'then' is called 'now_and_then' now", "option of 'now_and_then', 'start' is called 'first' now"} < words
    assert torch.equal(logits(old), logits(new))


def test_a_checkpoint_of_old_names_loads_and_is_saved_by_the_new_ones(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "stock"))
    hf_posenc.patch(model, NEW[0], **NEW[1]).save_pretrained(tmp_path / "old")
    file = tmp_path / "old" / "config.json"
    text = file.read_text()
    assert text.count('"steep"') == text.count('"scale"') == 1
    file.write_text(text.replace('"steep"', '"slanted"').replace('"scale"', '"steepness"'))
    loaded, words = said(lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "old"))
    assert words == BOTH and torch.equal(logits(loaded), logits(model))
    loaded.save_pretrained(tmp_path / "new")
    saved = json.loads((tmp_path / "new" / "config.json").read_text())
    assert saved["positional_encoding"] == json.loads(text)["positional_encoding"]


def test_a_command_line_and_create_know_both():
    assert read_plan(["slanted:steepness=3", "steep:scale=2"]) == {"slanted:steepness=3": {"steepness": 3}, "steep:scale=2": {"scale": 2}}
    created, words = said(lambda: hf_posenc.create("slanted", hf_posenc.Geometry(64, 4), steepness=3.0))
    assert words == BOTH and created.name == "steep" and created.options == {"scale": 3.0}
    assert hf_posenc.describe("slanted").name == "steep"


def test_old_names_are_not_listed_and_not_given_away():
    assert "steep" in hf_posenc.list_encodings() and "slanted" not in hf_posenc.list_encodings()
    with pytest.raises(ValueError, match="'slanted' is registered twice"):
        hf_posenc.register("slanted")(type("Another", (ALiBi,), {"bias": ALiBi.bias}))
    with pytest.raises(ValueError, match="'alibi' is registered twice"):
        hf_posenc.register("another", formerly=["alibi"])(type("Another", (ALiBi,), {"bias": ALiBi.bias}))
    assert "another" not in ENCODINGS
    with pytest.raises(ValueError, match="option 'scale' twice, once under the name that it had"):
        hf_posenc.patch(tiny_model("llama"), "steep", scale=2.0, steepness=3.0)
