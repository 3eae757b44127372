import dataclasses

import numpy as np
import pytest
import torch
from tiny import tiny_model

import hf_posenc
from hf_posenc.encodings import create
from hf_posenc.encodings.remap.ms_poe import outliers

PLAIN = 10_000.0 ** (-2 * np.arange(4) / 8)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    "heads, given, ranks", [(4, None, [3, 2, 1, 0]), (2, None, [1, 0]), (4, [0.1, 0.3, 0.1, 0.2], [2, 0, 3, 1]), (1, [9.0], [0])]
)
def test_scores(geometry, random_qk, rotary_scores, interleaved, heads, given, ranks):
    geometry = dataclasses.replace(geometry, num_kv_heads=heads, interleaved=interleaved)
    q, k, pos = random_qk(geometry, 12)
    expected = [
        rotary_scores(queries, key, lambda i, j, x=x: (i - j) / (1.2 + 0.6 * x / (heads - 1 or 1)) * PLAIN, interleaved)
        for queries, key, x in zip(q.chunk(heads, 1), k.split(1, 1), ranks, strict=True)
    ]
    scores = create("ms_poe", geometry, outliers=given).scores(q, k, pos, pos)
    torch.testing.assert_close(scores, torch.cat(expected, 1), rtol=0, atol=1e-5)


def test_stands_on_the_scaling_of_the_model(yarned, random_qk, rotary_scores):
    q, k, pos = random_qk(yarned, 12)
    expected = 1.25**2 * rotary_scores(q, k, lambda i, j: (i - j) / 2 * np.array(yarned.frequencies))
    scores = create("ms_poe", yarned, low=2.0, high=2.0).scores(q, k, pos, pos)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_the_ratios_of_the_paper(geometry):
    """Equation 2, from 1.2 to 1.8; the authors' code ends a step short of that, at 1.65 for four heads."""
    geometry = dataclasses.replace(geometry, num_kv_heads=4)
    assert create("ms_poe", geometry).ratios == pytest.approx([1.8, 1.6, 1.4, 1.2])
    assert create("ms_poe", geometry, high=1.65).ratios == pytest.approx([1.65, 1.5, 1.35, 1.2])


def test_outliers():
    """Over 3 times the mean of 1/8: no key of the last query of one head, one of eight of the other."""
    none, one = [0.125] * 8, [0.65, *[0.05] * 7]
    last = torch.tensor([none, one])[None, :, None]
    assert outliers(last, 2) == [0, 1 / 8]
    assert outliers(torch.cat((last, last.flip(1)), 1), 2) == [1 / 16, 1 / 16]
    assert outliers(torch.cat((last.flip(1), last), 2), 2) == [0, 1 / 8]
    assert outliers(torch.cat((last, last[:, [0, 0]])), 2) == [0, 1 / 16]


@torch.no_grad()
def test_outliers_of_a_layer_are_measured_on_raw_queries_and_keys():
    model, ids = tiny_model("llama", attn_implementation="eager"), torch.arange(2, 40)[None]
    with hf_posenc.patched(model, "nope", layers=1):
        measured = outliers(model(ids, output_attentions=True).attentions[1], 2)
    raw = model.model.layers[1].self_attn
    x = model.model.layers[1].input_layernorm(model(ids, output_hidden_states=True).hidden_states[1])
    q, k = (project(x).view(1, 38, -1, 16).transpose(1, 2) for project in (raw.q_proj, raw.k_proj))
    weights = (q[:, :, -1:] @ k.repeat_interleave(2, 1).transpose(2, 3) / 4).softmax(-1)
    assert measured == pytest.approx((weights > 3 / 38).double().mean((0, 2, 3)).view(2, 2).mean(1).tolist())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"low": 0.0}, "low must be"),
        ({"low": 2.0}, "high must be at least low = 2, got 1.8"),
        ({"outliers": [0.1, 0.2, 0.3]}, "outliers is a list of 2 numbers, one for each key-value head"),
        ({"outliers": 0.1}, "outliers is a list of 2 numbers"),
        ({"outliers": [0.1, "many"]}, "each of outliers must be a finite number"),
    ],
)
def test_bad_options(geometry, options, message):
    with pytest.raises(ValueError, match=message):
        create("ms_poe", geometry, **options)
