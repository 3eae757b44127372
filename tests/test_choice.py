"""Which path an encoding takes where, and that a model says so."""

import dataclasses

import pytest
import torch
from tiny import options_for, tiny_model

import hf_posenc
from hf_posenc.attention.choice import BACKENDS, FLEX_DEVICES, Prospect, choose
from hf_posenc.encodings import ENCODINGS, Geometry
from hf_posenc.encodings.naming import BY_BLOCK, SCORING

GPU = Prospect("sdpa", "cuda", torch.bfloat16, regional=False)


def chosen(name, prospect=GPU, **changes):
    encoding = hf_posenc.create(name, Geometry(64, 4, max_positions=64), **options_for(name))
    return choose(encoding, dataclasses.replace(prospect, regional=encoding.has("regions"), **changes))


@pytest.mark.cover(
    *("name place", "encoding_kind learning place backend"), backend=["sdpa", "flex_attention"], place=FLEX_DEVICES, learning=[False, True]
)
def test_on_an_accelerator_nothing_goes_by_block_that_flex_attention_can_do(name, backend, place, learning):
    cls, found = ENCODINGS[name], chosen(name, backend=backend, place=place, learning=learning)
    assert found.why
    if not cls.has(*SCORING):
        assert found.path == "stock"
    elif cls.has(*BY_BLOCK) or cls.data_dependent:
        assert found.path == "blocks"
    elif learning and (place == "mps" or (cls.has("bias") and not cls.relative)):
        assert found.path == "blocks"  # no backward pass there; every score would add to the same few gradients
    else:
        assert found.path == "flex"


@pytest.mark.parametrize("name", ["alibi", "fire", "rerope"])
def test_what_flex_attention_cannot_do_has_its_reason(name):
    for why, changes in {
        "dropout": {"dropout": 0.1},
        "whole positions": {"fractional": True},
        "float64": {"dtype": torch.float64},
        "npu": {"place": "npu"},
        "doctor": {"avoided": frozenset({"flex"})},
        "mps": {"place": "mps", "learning": True},
    }.items():
        found = chosen(name, **changes)
        assert found.path == "blocks" and why in found.why, why


def test_flash_attention():
    for backend in set(BACKENDS) - {"eager", "sdpa", "flex_attention"}:
        assert chosen("alibi", backend=backend).path == "columns"
        assert chosen("rope", backend=backend).path == "stock"


def test_on_a_cpu():
    cpu = dataclasses.replace(GPU, place="cpu", dtype=torch.float32)
    paths = {name: chosen(name, cpu).path for name in ("yarn", "alibi", "rerope", "fire", "shaw")}
    assert paths == {"yarn": "stock", "alibi": "table", "rerope": "regions", "fire": "blocks", "shaw": "blocks"}
    assert {name: chosen(name, cpu, tileable=False).path for name in ("alibi", "rerope")} == {"alibi": "blocks", "rerope": "blocks"}
    assert chosen("alibi", cpu, tileable=False, backend="flex_attention").path == "blocks"
    assert all(chosen(name, cpu, backend="eager").path == "dense" for name in paths)


def test_a_model_says_which_path_it_takes():
    def said(arch, name, **changes):
        model = hf_posenc.patch(tiny_model(arch, **changes), name, **options_for(name))
        found = hf_posenc.inspect(model)
        live = found.encodings[0]
        assert live.path.why and f"path: {live.path.path} ({live.path.why})" in str(found)
        assert ("in training:" in str(found)) == (live.path.path != live.in_training.path)
        return live.path.path, live.in_training.path

    assert said("llama", "yarn") == ("stock", "stock")
    assert said("llama", "alibi") == ("table", "table")
    assert said("llama", "alibi", attention_dropout=0.1) == ("table", "blocks")
    assert said("gpt2", "rerope", attn_pdrop=0.0) == ("regions", "regions")
    assert said("llama", "t5", attn_implementation="eager") == ("dense", "dense")
    assert said("gemma2", "alibi", attn_implementation="flex_attention") == ("blocks", "blocks")  # softcap
