import math

import pytest
import torch

from hf_posenc.encodings import create

AUTHORS = [  # NezhaPositionsEncoding(6, 6, 8, 3) of Tongjilibo/bert4torch, query 5: vectors of keys 2 to 5; those before are as key 2
    [0.000000e00, 1.000000e00, 0.000000e00, 1.000000e00, 0.000000e00, 1.000000e00, 0.000000e00, 1.000000e00],
    [8.414710e-01, 5.403023e-01, 9.983341e-02, 9.950042e-01, 9.999833e-03, 9.999500e-01, 9.999998e-04, 9.999995e-01],
    [9.092974e-01, -4.161468e-01, 1.986693e-01, 9.800666e-01, 1.999867e-02, 9.998000e-01, 1.999998e-03, 9.999980e-01],
    [1.411200e-01, -9.899925e-01, 2.955202e-01, 9.553365e-01, 2.999550e-02, 9.995500e-01, 2.999995e-03, 9.999955e-01],
]


def test_vectors_are_those_of_the_authors(geometry):
    nezha = create("nezha", geometry, max_distance=3)
    torch.testing.assert_close(nezha.table, torch.tensor(AUTHORS).flip(0), rtol=0, atol=1e-6)
    assert torch.equal(nezha.value_table, nezha.table)


def test_scores(geometry, random_qk):
    nezha = create("nezha", geometry, max_distance=5)
    q, k, _ = random_qk(geometry, 7)
    q_pos, k_pos = torch.randint(0, 20, (2, 7)), torch.randint(0, 20, (2, 7))
    scores = nezha.scores(q, k, q_pos, k_pos)
    for b in range(2):
        for i in range(7):
            for j in range(7):
                t = 5 - min(max(int(q_pos[b, i] - k_pos[b, j]), 0), 5)
                wave = [f(t * 10_000 ** (-2 * n / 8)) for n in range(4) for f in (math.sin, math.cos)]
                for h in range(4):
                    expected = q[b, h, i] @ (k[b, h // 2, j] + torch.tensor(wave).double()) / 8**0.5
                    torch.testing.assert_close(scores[b, h, i, j], expected, rtol=0, atol=1e-5)


def test_values_are_moved_by_the_same_vectors(geometry, random_qk):
    """The weighted sum of a vector for each pair, as NezhaSelfAttention of bert4torch takes it."""
    nezha, (q, k, pos) = create("nezha", geometry, max_distance=3), random_qk(geometry, 6)
    weights = torch.rand(2, 4, 6, 6).tril()
    pairs = torch.tensor(AUTHORS)[(pos[0] - pos[0][:, None]).clamp(-3, 0) + 3]
    expected = torch.einsum("bhij,ijd->bhid", weights, pairs)
    torch.testing.assert_close(nezha.attended(weights, nezha.block(q, k, pos, pos)), expected, rtol=0, atol=1e-5)
    assert nezha.has("attended") and not create("nezha", geometry, values=False).has("attended")


def test_nothing_learns(geometry):
    assert not list(create("nezha", geometry).parameters())


def test_bad_options(geometry):
    with pytest.raises(ValueError, match="max_distance"):
        create("nezha", geometry, max_distance=0)
    with pytest.raises(ValueError, match="values is True or False"):
        create("nezha", geometry, values=None)
