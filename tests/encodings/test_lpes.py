import dataclasses
from itertools import pairwise

import pytest
import torch
from tiny import tiny_model

import hf_posenc
from hf_posenc.encodings import create
from hf_posenc.patching import patch_of


def factors_of(geometry, layers=5, **options):
    plain = create("rope", geometry).inv_freq
    places = [dataclasses.replace(geometry, num_layers=layers, layer_types=(), layer=layer) for layer in range(layers)]
    return [(plain / create("lpes", place, **options).inv_freq).tolist() for place in places]


def casteljau(points, x):
    """The point of a Bezier curve by repeated interpolation."""
    while len(points) > 1:
        points = [(1 - x) * a + x * b for a, b in pairwise(points)]
    return points[0]


@pytest.mark.parametrize("curve", [[0.0, 1.0], [0.2, 1.0, 0.0], [0.0, 1.0, 0.3, 0.7]])
def test_a_bezier_curve_over_the_layers(geometry, curve):
    for layer, factors in enumerate(factors_of(geometry, factor=3.0, curve=curve)):
        assert factors == pytest.approx([1 + 2 * casteljau(curve, layer / 4)] * 4, rel=1e-6)


def test_a_factor_for_each_layer(geometry):
    chosen = [1.0, 1.5, 2.0, 1.25, 0.8]
    for layer, factors in enumerate(factors_of(geometry, factors=chosen)):
        assert factors == pytest.approx([chosen[layer]] * 4, rel=1e-6)
    only = create("lpes", geometry, factors=[1.5])
    assert only.context_length == 24


@torch.no_grad()
def test_layers_of_a_model(batch):
    """In its native slot, each layer by itself."""
    model, ids = hf_posenc.patch(tiny_model("llama"), "lpes", factors=[1.0, 2.0]), batch["input_ids"][1:]
    assert [(p.native, p.layers, p.encoding.layer_factor()) for p in patch_of(model).placements] == [(True, (0,), 1.0), (True, (1,), 2.0)]
    expected = hf_posenc.patch(tiny_model("llama"), "linear", layers=[1], factor=2.0)
    torch.testing.assert_close(model(ids).logits, expected(ids).logits)


@pytest.mark.parametrize(
    "options",
    [
        {"curve": [1.0]},
        {"curve": [0.0, 1.5]},
        {"curve": 1.0},
        {"factors": [2.0, 2.0]},
        {"factors": [0.0]},
        {"factors": [1.0], "factor": 2.0},
        {"factors": [1.0], "curve": [0.0, 1.0]},
        {"factor": 0.5},
        {},
    ],
)
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options), "either factor= or target_length=")):
        create("lpes", geometry, **{"factor": 2.0} | options if [*options] == ["curve"] else options)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="'lpes' does not compose"):
        create("lpes", yarned, factor=2.0)
