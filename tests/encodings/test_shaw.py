from types import SimpleNamespace

import pytest
import torch
from tiny import started
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import _apply_relative_key_position_encoding

from hf_posenc.encodings import create


def bias(encoding, q, k, q_pos, k_pos):
    return encoding.scores(q, k, q_pos, k_pos) - create("nope", encoding.geometry).scores(q, k, q_pos, k_pos)


def test_scores(geometry, random_qk):
    shaw = create("shaw", geometry, max_distance=5)
    q, k, _ = random_qk(geometry, 9)
    q_pos, k_pos = torch.randint(0, 20, (2, 9)), torch.randint(0, 20, (2, 9))  # in any order, with gaps
    scores = shaw.scores(q, k, q_pos, k_pos)
    for b in range(2):
        for h in range(4):
            for i in range(9):
                for j in range(9):
                    row = min(max(int(q_pos[b, i] - k_pos[b, j]), 0), 5)
                    expected = q[b, h, i] @ (k[b, h // 2, j] + shaw.table[row].double()) / 8**0.5
                    torch.testing.assert_close(scores[b, h, i, j], expected, rtol=0, atol=1e-12)


def test_is_the_relative_key_of_transformers(geometry, random_qk):
    shaw = create("shaw", geometry)
    q, k, pos = random_qk(geometry, 40)
    table = torch.nn.Embedding(17, 8, _weight=shaw.table.detach().double().flip(0))
    layer = SimpleNamespace(left_max_position_embeddings=16, right_max_position_embeddings=0, distance_embedding=table, scaling=8**-0.5)
    expected = _apply_relative_key_position_encoding(layer, q, k)[1]
    torch.testing.assert_close(bias(shaw, q, k, pos, pos), expected, rtol=0, atol=1e-12)


def test_every_distance_learns_and_the_last_one_most(geometry, random_qk):
    shaw = create("shaw", geometry, max_distance=3)
    q, k, pos = random_qk(geometry, 12)
    shaw.scores(torch.ones_like(q), k, pos, pos).tril().sum().backward()
    pairs = torch.tensor([12.0, 11.0, 10.0, 45.0])  # at distance 0, 1, 2, and from 3 on
    torch.testing.assert_close(shaw.table.grad, (pairs * 2 * 4 / 8**0.5)[:, None].expand(-1, 8))


def test_scaling_is_that_of_the_model(geometry, random_qk):
    shaw = create("shaw", geometry)
    q, k, pos = random_qk(geometry, 6)
    torch.testing.assert_close(shaw.scores(q, k, pos, pos, 0.5), shaw.scores(q, k, pos, pos) * 0.5 * 8**0.5)


def test_layers_start_apart(geometry):
    first, second = create("shaw", geometry), create("shaw", geometry)
    assert first.per_layer and first.table.shape == (17, 8)
    assert not torch.equal(first.table, second.table)


def test_vectors_at_zero_start_as_none():
    encoding, logits = started("shaw", init="zero")
    assert encoding.starts_as == "nope"
    torch.testing.assert_close(logits, started("nope")[1])


@pytest.mark.parametrize("max_distance", [0, -1, 2.0, True])
def test_bad_options(geometry, max_distance):
    with pytest.raises(ValueError, match="max_distance must be an integer of at least 1"):
        create("shaw", geometry, max_distance=max_distance)
    with pytest.raises(ValueError, match="init is one of xavier, zero"):
        create("shaw", geometry, init=0)


def test_values(geometry, random_qk):
    """Eq. 3: what a token attends to has the vector of its distance added to it."""
    shaw = create("shaw", geometry, max_distance=3).double()
    q, k, pos = random_qk(geometry, 9)
    weights = torch.rand(2, 4, 9, 9, dtype=torch.float64)
    expected = torch.stack(
        [sum(weights[:, :, i, j, None] * shaw.value_table[min(max(i - j, 0), 3)] for j in range(9)) for i in range(9)], 2
    )
    torch.testing.assert_close(shaw.attended(weights, shaw.block(q, k, pos, pos)), expected)
    without = create("shaw", geometry, values=False)
    assert shaw.has("attended") and not without.has("attended") and without.value_table is None
