import dataclasses

import pytest
import torch
from tiny import started

from hf_posenc.encodings import Geometry, create

# MSGRAPECommuting(4, 8, log_freq_scale=16) of model-architectures/GRAPE for query 5, its logarithms moved by `wave(4) * 8`
AUTHORS = [
    [-0.9329105, -0.6919971, -0.0248311, 0.6837233, 1.0964007, 1.1759814],
    [-1.6093390, -0.9722360, -0.2118178, 0.6334489, 1.3110840, 1.3216640],
    [-0.8194260, -0.1982130, 0.4598418, 0.8365992, 1.0791836, 1.3944924],
    [-0.7211599, -0.4021551, -0.1648257, 0.4314574, 1.2710071, 1.7331687],
]


def wave(*shape):
    return torch.arange(torch.Size(shape).numel()).float().sin().view(shape)


@pytest.mark.parametrize("backwards", [True, False])
def test_equals_the_authors_code(backwards):
    """Theirs turns backwards: elsewhere it is theirs with the sign of the distance changed."""
    geometry = dataclasses.replace(Geometry(32, 4, head_dim=8), backwards=backwards)
    grape = create("grape_multiplicative", geometry)
    grape.log_scale.data = wave(4) * 8
    q, pos = wave(1, 6, 4, 8).transpose(1, 2), torch.arange(6)[None]
    scores = grape.scores(q, q + 0.5, *((pos, pos) if backwards else (5 - pos, 5 - pos)))
    torch.testing.assert_close(scores[0, :, 5], torch.tensor(AUTHORS), rtol=1e-5, atol=2e-6)


def test_heads_with_frequencies_of_their_own(geometry, random_qk, rotary_scores):
    q, k, pos = random_qk(geometry, 9)
    grape = create("grape_multiplicative", geometry, per_head=True).double()
    grape.log_scale.data = 16 * torch.tensor([[2.0, 0.5, 1.0, 3.0], [1.0, 4.0, 0.25, 1.0]]).log().double()
    scores = grape.scores(q, k, pos, pos)
    for g, turned in enumerate([[2.0, 0.05, 0.01, 0.003], [1.0, 0.4, 0.0025, 0.001]]):
        expected = rotary_scores(q[:, 2 * g : 2 * g + 2], k[:, g : g + 1], lambda i, j, turned=turned: [(i - j) * f for f in turned])
        torch.testing.assert_close(scores[:, 2 * g : 2 * g + 2], expected, rtol=0, atol=1e-6)


def test_starts_as_rope():
    encoding, logits = started("grape_multiplicative")
    assert encoding.starts_as == "rope"
    torch.testing.assert_close(logits, started("rope")[1])
