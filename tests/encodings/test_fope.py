import dataclasses
import math

import numpy as np
import pytest
import torch
from tiny import tiny_model

import hf_posenc
from hf_posenc.encodings import Geometry, create
from hf_posenc.patching import patch_of

SMALL = Geometry(hidden_size=64, num_heads=2, max_positions=64)
AUTHORS = [1.1640621424, 0.2674745917, 0.0588629320, -0.0854900479, -0.1361542940, -0.1904806197]
"""Dimensions 0, 1, 4, 16, 17 and 20 of the second head of cos(0, 1, 2 ...) at position 7, from TsinghuaC3I/Fourier-Position-Embedding."""


@pytest.fixture
def mixed():
    fope = create("fope", SMALL)
    index = torch.arange(50.0).view(2, 5, 5)
    fope.cos_mix, fope.sin_mix = torch.eye(5) + 0.1 * index.sin(), torch.eye(5) + 0.1 * index.cos()
    return fope


def test_numbers_of_the_authors_code(mixed):
    x = torch.arange(64.0).cos().view(1, 2, 1, 32)
    turned = mixed.rotate_one(x, torch.tensor([[7]]))[0, 1, 0]
    torch.testing.assert_close(turned[[0, 1, 4, 16, 17, 20]], torch.tensor(AUTHORS), rtol=0, atol=1e-6)


def test_what_does_not_turn_stays_as_it_is(mixed):
    """The authors' code has sin = 1 there, and twice the product."""
    x, pos = torch.randn(1, 2, 3, 32), torch.tensor([[0, 7, 5000]])
    turned = mixed.rotate_one(x, pos)
    still = [*range(5, 16), *range(21, 32)]
    assert torch.equal(turned[..., still], x[..., still])


def test_fourier_series(geometry, random_qk):
    """Pair by pair in float64, with the mixtures as they are drawn."""
    geometry = dataclasses.replace(geometry, max_positions=1000)  # the floor lies between the third and the fourth frequency
    fope = create("fope", geometry, sigma=0.8, seed=3)
    q, k, pos = random_qk(geometry, 9)
    scores, f = fope.scores(q, k, pos, pos), 10.0 ** -np.arange(3.0)

    def turned(x, t, group):
        cos, sin = (mix[group].double().numpy() for mix in (fope.cos_mix, fope.sin_mix))
        a, b = x[:3].numpy(), x[4:7].numpy()
        c, s = np.cos(f * t) @ cos, np.sin(f * t) @ sin
        return np.concatenate([a * c - b * s, x[3:4], b * c + a * s, x[7:]])

    for b, h, i, j in [(0, 0, 8, 2), (1, 3, 5, 5), (1, 2, 8, 0)]:
        expected = turned(q[b, h, i], i, h // 2) @ turned(k[b, h // 2, j], j, h // 2) / math.sqrt(8)
        assert scores[b, h, i, j].item() == pytest.approx(expected, abs=1e-6)


def test_drawn_once_for_each_seed_layer_and_head():
    first = create("fope", SMALL)
    assert torch.equal(create("fope", SMALL).cos_mix, first.cos_mix)
    assert not torch.equal(first.cos_mix[0], first.cos_mix[1]) and not torch.equal(first.cos_mix, first.sin_mix)
    for other in (create("fope", SMALL, seed=1), create("fope", dataclasses.replace(SMALL, layer=1))):
        assert not torch.equal(other.cos_mix, first.cos_mix)


def test_scale_of_the_mixture():
    """As `xavier_normal_` has it for a tensor of all heads."""
    big = Geometry(hidden_size=1024, num_heads=8, max_positions=1000, theta=1000.0)
    fope = create("fope", big)
    n = fope.turning
    like = torch.empty(8, n, n)
    expected = np.mean([torch.nn.init.xavier_normal_(like, gain=0.3).std().item() for _ in range(20)])
    assert (fope.cos_mix - torch.eye(n)).std().item() == pytest.approx(expected, rel=0.05)


@torch.no_grad()
def test_frozen_or_learned(batch):
    frozen, learned = (hf_posenc.patch(tiny_model("llama"), "fope", learnable=flag) for flag in (False, True))
    ids = batch["input_ids"]
    assert torch.equal(frozen(ids).logits, learned(ids).logits)
    assert [len(list(p.encoding.parameters())) for model in (frozen, learned) for p in patch_of(model).placements] == [0, 0, 2, 2]


@pytest.mark.parametrize("options", [{"sigma": 0}, {"learnable": 1}, {"seed": -1}, {"seed": 0.5}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("fope", geometry, **options)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="'fope' does not compose"):
        create("fope", yarned)
