import dataclasses

import pytest
import torch
from tiny import started
from transformers.models.t5.modeling_t5 import T5Attention

from hf_posenc.encodings import create


@pytest.mark.parametrize("num_buckets, max_distance", [(32, 128), (64, 1000), (2, 2), (7, 20), (32, 17)])
def test_buckets_equal_transformers(geometry, num_buckets, max_distance):
    bias = create("t5", geometry, num_buckets=num_buckets, max_distance=max_distance)
    distance = torch.arange(-50, 100_001)
    expected = T5Attention._relative_position_bucket(-distance, False, num_buckets, max_distance)
    assert torch.equal(bias.bucket(distance), expected)
    assert torch.equal(bias.bucket(distance.double()), expected)


def test_first_and_last_bucket(geometry):
    bias = create("t5", geometry)
    assert bias.bucket(torch.tensor([-3, 0, 1, 15, 16, 112, 113, 10**6])).tolist() == [0, 0, 1, 15, 16, 30, 31, 31]


def test_a_decoder_uses_every_bucket(geometry):
    """As T5's encoder splits them, half of them would be for keys after the query; and one table serves all layers."""
    bias = create("t5", geometry)
    assert bias.bucket(torch.arange(200)).unique().tolist() == list(range(32))
    assert not bias.per_layer and [p.shape for p in bias.parameters()] == [(32, 4)]


def test_scores(geometry, random_qk):
    bias = create("t5", geometry, num_buckets=8, max_distance=20)
    q, k, pos = random_qk(geometry, 30)
    scores = bias.scores(q, k, pos, pos)
    plain = create("nope", geometry).scores(q, k, pos, pos)
    for i in range(30):
        for j in range(30):
            bucket = T5Attention._relative_position_bucket(torch.tensor(j - i), False, 8, 20)
            torch.testing.assert_close(scores[:, :, i, j], plain[:, :, i, j] + bias.table[bucket])


def test_table_is_learned(geometry):
    bias = create("t5", geometry, num_buckets=8)
    pos = torch.arange(40)[None]
    bias.bias_matrix(pos, pos).sum().backward()
    assert bias.table.shape == (8, 4)
    assert bias.table.grad[0, 0] == 40 + 39 * 40 / 2  # the diagonal, and the future


def test_buckets_at_zero_start_as_none():
    encoding, logits = started("t5", init="zero")
    assert encoding.starts_as == "nope" and torch.equal(logits, started("nope")[1])


def test_buckets_from_alibi_start_as_alibi_where_each_holds_one_distance():
    """All 17 tokens do with 64 buckets, of which 32 hold one distance."""
    torch.testing.assert_close(started("t5", init="alibi", num_buckets=64)[1], started("alibi")[1])


def test_other_buckets_have_the_alibi_of_a_distance_that_they_hold(geometry):
    geometry = dataclasses.replace(geometry, slopes=(0.7, 0.5, 0.3, 0.1))
    t5, distance = create("t5", geometry, init="alibi"), torch.arange(128)
    bucket = T5Attention._relative_position_bucket(-distance, False, 32, 128)
    for b in range(32):
        held = distance[bucket == b].float()
        middle = -t5.table[b] / torch.tensor(geometry.slopes)
        assert (middle > held.min() - 0.01).all() and (middle < held.max() + 1).all()


@pytest.mark.parametrize("options", [{"num_buckets": 1}, {"num_buckets": 8.0}, {"max_distance": 16}, {"max_distance": True}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be an integer of at least"):
        create("t5", geometry, **options)
    with pytest.raises(ValueError, match="init is one of normal, zero, alibi, got 'one'"):
        create("t5", geometry, init="one")
