"""Each temperature against its formula in Python's float64, and against the model that ships it."""

import math

import pytest
import torch
from tiny import tiny_model
from torch.testing import assert_close

import hf_posenc
from hf_posenc.encodings import ENCODINGS, create
from hf_posenc.encodings.temperature.base import Temperature

L, D = 16, 8  # of the fixture `geometry`
FACTOR = {
    "log_n": lambda i: max(1.0, math.log(i + 1) / math.log(L)),
    "infoscale": lambda i: max(1.0, math.sqrt((1 - (i + 1) ** (-2 / D)) / (1 - L ** (-2 / D)))),
    "llama4_scale": lambda i: 1 + 0.1 * math.log(1 + math.floor((i + 1) / 4)),
    "ministral_scale": lambda i: 1 + 0.1 * math.log(1 + math.floor(i / L)),
    "ssmax": lambda i: math.log(i + 1) * L / sum(math.log(n) for n in range(1, L + 1)),
    "head_scale": lambda i: 1.6,
    "yarn_scale": lambda i: (0.1 * math.log(8) + 1) ** 2,
    "drope_scale": lambda i: 1 + 0.412 * math.log(8),
}
OPTIONS = {
    "llama4_scale": {"floor_scale": 4},
    "head_scale": {"init": 1.6},
    "yarn_scale": {"factor": 8.0},
    "drope_scale": {"target_length": 128},
}


def test_all_are_tested():
    assert set(FACTOR) == {name for name in ENCODINGS if issubclass(ENCODINGS[name], Temperature)}


@pytest.mark.parametrize("name", FACTOR)
def test_products_are_multiplied_by_the_formula(geometry, random_qk, name):
    q, k, pos = random_qk(geometry, 70)
    scores = create(name, geometry, **OPTIONS.get(name, {})).double().scores(q, k, pos, pos)
    plain = create("nope", geometry).scores(q, k, pos, pos)
    factor = torch.tensor([FACTOR[name](i) for i in range(70)], dtype=torch.float64)
    assert_close(scores, plain * factor[:, None], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "trained"), [("log_n", 5), ("infoscale", 40)])
def test_without_clipping_short_texts_are_flattened(geometry, name, trained):
    pos = torch.arange(80)[None, None].double()
    clipped, free = (create(name, geometry, trained_length=trained, clip=clip).factor(pos)[0, 0] for clip in (True, False))
    assert bool((clipped[:trained] == 1).all()) and bool((free[: trained - 1] < 1).all()) and abs(float(free[trained - 1]) - 1) < 1e-12
    assert torch.equal(clipped[trained:], free[trained:]) and bool((free[trained:].diff() > 0).all())


def test_infoscale_is_what_the_authors_code_gave(geometry):
    """`my_gau_alpha_eval/layer.py` of the authors, for 8 dimensions, trained at 16 and asked at 16, 64 and 1024 tokens."""
    factor = create("infoscale", geometry, clip=False).factor(torch.tensor([15, 63, 1023])[None, None].double())
    assert_close(factor, torch.tensor([[[1.0, 1.137054624375387, 1.2831393569705225]]]).double(), rtol=1e-6, atol=0)


def test_ssmax_starts_as_in_the_paper():
    scale = create("ssmax", hf_posenc.Geometry(64, 4, max_positions=1024)).scale
    assert scale.shape == (4,) and abs(scale.tolist()[0] - 0.168) < 5e-4


def learned(name, geometry):
    encoding = create(name, geometry)
    with torch.no_grad():
        encoding.scale.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    return encoding


@pytest.mark.parametrize("name", ["ssmax", "head_scale"])
def test_each_query_head_has_its_own(geometry, random_qk, name):
    q, k, pos = random_qk(geometry, 9)
    scores = learned(name, geometry).double().scores(q, k, pos, pos)
    plain = create("nope", geometry).scores(q, k, pos, pos)
    growth = torch.log1p(pos[0].double()) if name == "ssmax" else torch.ones(9, dtype=torch.float64)
    for head, scale in enumerate((0.5, 1.0, 2.0, 3.0)):
        assert_close(scores[:, head], plain[:, head] * growth[:, None] * scale)


@torch.no_grad()
def test_llama4_is_the_model_of_that_name():
    config = {"floor_scale": 3, "no_rope_layers": [0, 0], "attention_chunk_size": None}
    theirs = tiny_model("llama4_text", attn_temperature_tuning=True, **config)
    ours = tiny_model("llama4_text", attn_temperature_tuning=False, **config)
    ids = torch.arange(3, 50)[None]
    assert not torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-3)
    hf_posenc.patch(ours, "llama4_scale", floor_scale=3)
    assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_ministral_is_the_model_of_that_name():
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "original_max_position_embeddings": 5}
    theirs, ours = (tiny_model("ministral3", rope_parameters=rope | {"llama_4_scaling_beta": beta}) for beta in (0.1, 0.0))
    ids = torch.arange(3, 50)[None]
    assert not torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-3)
    hf_posenc.patch(ours, "ministral_scale", trained_length=5, layers="all")
    assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)
