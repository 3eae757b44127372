import dataclasses
import math

import pytest
import torch

from hf_posenc.encodings import create

AUTHORS = [  # Tisa(2, 2) of ulmewennberg/tisa with the numbers below: what each head adds to keys 0 .. 4 of query 4
    [2.100153923, 2.217412472, 1.149304867, 0.540292561, 0.339534998],
    [0.044004038, -0.215688720, -0.563087642, -0.725820661, -0.530493915],
]


def test_equals_the_authors_code_but_for_where_distances_are_counted_from(geometry):
    tisa = create("tisa", dataclasses.replace(geometry, num_heads=2), kernels=2)
    tisa.height.data, tisa.sharpness.data = torch.tensor([[0.5, 2.0], [-1.0, 0.3]]), torch.tensor([[0.1, 0.5], [-0.2, 0.01]])
    tisa.place.data = torch.tensor([[1.0, 2.5], [0.0, -3.0]]) + 1
    bias = tisa.bias_matrix(torch.tensor([[4]]), torch.arange(5)[None])
    torch.testing.assert_close(bias[0, :, 0], torch.tensor(AUTHORS))


def test_scores(geometry, random_qk):
    tisa, (q, k, pos) = create("tisa", geometry), random_qk(geometry, 9)
    scores, none = (encoding.scores(q, k, pos, pos) for encoding in (tisa, create("nope", geometry)))
    parameters = [x.tolist() for x in (tisa.height, tisa.sharpness, tisa.place)]
    for h in range(4):
        for i in range(9):
            for j in range(i + 1):
                added = sum(a * math.exp(-abs(b) * (i - j - c) ** 2) for a, b, c in zip(*(x[h] for x in parameters), strict=True))
                torch.testing.assert_close((scores - none)[:, h, i, j], torch.full((2,), added).double(), rtol=0, atol=1e-6)


def test_starts_as_the_authors_do(geometry):
    tisa = create("tisa", dataclasses.replace(geometry, num_heads=1000, num_kv_heads=1))
    for parameter, mean, std in ((tisa.height, 0.1, 0.01), (tisa.sharpness, 0.1, 0.01), (tisa.place, 0.0, 5.0)):
        assert (parameter.mean().item(), parameter.std().item()) == (pytest.approx(mean, abs=std / 10), pytest.approx(std, rel=0.1))
    assert tisa.per_layer


def test_bad_options(geometry):
    with pytest.raises(ValueError, match="kernels"):
        create("tisa", geometry, kernels=0)
