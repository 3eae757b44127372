import cmath
import dataclasses
import math

import pytest
import torch

from hf_posenc.encodings import Geometry, create

AUTHORS = [  # the bias of query 5 by CausalSelfAttention of llama-mha-grape-ap-v1 of model-architectures/GRAPE, with the weights below
    [-0.94058657, -0.78942925, -0.59197390, -0.36693251, -0.16015536, 0.0],
    [-0.23489958, -0.19702470, -0.14772810, -0.09165874, -0.04008263, 0.0],
    [-0.05879258, -0.04935005, -0.03700903, -0.02293633, -0.01000796, 0.0],
    [-0.01473833, -0.01239230, -0.00929667, -0.00574657, -0.00249471, 0.0],
]


def bias(grape, q, k, pos, x):
    return grape.scores(q, k, pos, pos, state=grape.state(x, pos)) - create("nope", grape.geometry).scores(q, k, pos, pos)


def test_equals_the_authors_code():
    grape = create("grape_path", Geometry(32, 4, head_dim=8), width=6)
    grape.p.data = torch.arange(768).float().sin().view(4, 6, 32)
    x, q, pos = torch.arange(192).float().sin().cos().view(1, 6, 32), torch.zeros(1, 4, 6, 8), torch.arange(6)[None]
    torch.testing.assert_close(bias(grape, q, q, pos, x)[0, :, 5], torch.tensor(AUTHORS), rtol=1e-5, atol=1e-6)


def test_scores(geometry, random_qk):
    """One price after another; the slopes are those of the model."""
    torch.manual_seed(0)
    slopes = (0.5, 0.3, 0.2, 0.1)
    grape, (q, k, pos) = create("grape_path", dataclasses.replace(geometry, slopes=slopes), width=4).double(), random_qk(geometry, 7)
    grape.p.data.normal_()
    x, pos = torch.randn(2, 7, 32, dtype=torch.float64), pos + 100
    found = bias(grape, q, k, pos, x).detach()
    for b in range(2):
        for h in range(4):
            p = (x[b] @ grape.p[h].T).tolist()
            for i in range(7):
                total = 0.0
                for j in range(i, -1, -1):
                    assert math.isclose(found[b, h, i, j].item(), total, abs_tol=1e-6)
                    length = math.sqrt(sum(n * n for n in p[j]))
                    met = sum(
                        (complex(p[i][n], -p[i][n + 2]) * complex(p[j][n], p[j][n + 2]) * cmath.exp(-1j * (100 + j))).real for n in (0, 1)
                    )
                    total -= slopes[h] * math.log1p(math.exp(-met / length / 2))


def test_without_numbers_it_is_alibi(geometry, random_qk):
    grape, (q, k, pos) = create("grape_path", geometry).double(), random_qk(geometry, 7)
    torch.nn.init.zeros_(grape.p)
    alibi = create("alibi", geometry).bias_matrix(pos.double(), pos.double())
    found, causal = bias(grape, q, k, pos, torch.randn(2, 7, 32, dtype=torch.float64)), torch.ones(7, 7).tril().bool()
    expected = (alibi * math.log(2)).expand_as(found)
    torch.testing.assert_close(found[..., causal], expected[..., causal], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [0, 5, "8"])
def test_bad_options(width, geometry):
    with pytest.raises(ValueError, match="width"):
        create("grape_path", geometry, width=width)
