import dataclasses

import pytest
import torch
from tiny import started
from transformers import DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention, make_log_bucket_position

from hf_posenc.encodings import create


@pytest.mark.parametrize("log", [True, False])
def test_is_the_disentangled_attention_of_transformers(geometry, log):
    """At the temperature sqrt(3 D) that it has; 70 tokens, of which 12 and more are past the exact buckets."""
    geometry, span = dataclasses.replace(geometry, num_kv_heads=4), 24
    config = DebertaV2Config(hidden_size=32, num_attention_heads=4, relative_attention=True, pos_att_type=["c2p", "p2c"])
    config.position_buckets, config.max_relative_positions = (span, 60) if log else (-1, span)
    attention = DisentangledSelfAttention(config).eval()
    rel = torch.randn(2 * span, 32)
    deberta = create("deberta", geometry, buckets=span, max_distance=60 if log else None)
    for table, projection in ((deberta.key_table, attention.pos_key_proj), (deberta.query_table, attention.pos_query_proj)):
        table.data = projection(rel)[span:].unflatten(-1, (4, 8)).transpose(0, 1)
    q, k, pos = torch.randn(2, 4, 70, 8), torch.randn(2, 4, 70, 8), torch.arange(70).expand(2, -1)
    expected = attention.disentangled_attention_bias(q.flatten(0, 1), k.flatten(0, 1), None, rel, scale_factor=3)
    ours = deberta.context_bias(q, k, pos, pos, (3 * 8) ** -0.5)
    torch.testing.assert_close(ours.tril(), expected.view(2, 4, 70, 70).tril(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("buckets, max_distance", [(256, 512), (64, 1000), (6, 5), (3, 9)])
def test_buckets_equal_transformers(geometry, buckets, max_distance):
    deberta, distance = create("deberta", geometry, buckets=buckets, max_distance=max_distance), torch.arange(-50, 100_001)
    expected = make_log_bucket_position(distance.clamp(min=0), buckets, max_distance).long().clamp(max=buckets - 1)
    assert torch.equal(deberta.bucket(distance), expected)


def test_scores(geometry, random_qk):
    """Each pair on its own: what the key says meets the vector of the distance from query to key, and no other."""
    deberta = create("deberta", geometry, buckets=5, max_distance=None)
    deberta.key_table.data.normal_(), deberta.query_table.data.normal_()
    q, k, _ = random_qk(geometry, 7)
    q_pos, k_pos = torch.randint(3, 20, (2, 7)), torch.randint(0, 17, (2, 7))  # in any order, with gaps
    scores = deberta.scores(q, k, q_pos, k_pos)
    for b in range(2):
        for h in range(4):
            for i in range(7):
                for j in range(7):
                    row = min(max(int(q_pos[b, i] - k_pos[b, j]), 0), 4)
                    key, query = (table[h, row].double() for table in (deberta.key_table, deberta.query_table))
                    x, y = q[b, h, i], k[b, h // 2, j]
                    torch.testing.assert_close(scores[b, h, i, j], (x @ y + x @ key + y @ query) / 8**0.5, rtol=0, atol=1e-12)


def test_query_to_position_and_key_to_position_are_not_the_same(geometry, random_qk):
    """A key's vectors are gathered by key, then turned: taken by query, they would be those of other keys."""
    deberta = create("deberta", geometry, buckets=9, max_distance=None)
    deberta.key_table.data.zero_(), deberta.query_table.data.normal_()
    q, k, pos = random_qk(geometry, 9)
    bias = deberta.context_bias(q, k, pos, pos, 1.0)
    changed = k.clone()
    changed[:, :, 3] += 1
    moved = (deberta.context_bias(q, changed, pos, pos, 1.0) != bias).any(0).any(0)
    assert moved.tolist() == [[j == 3 for j in range(9)]] * 9


def test_a_row_alone_is_the_row_of_a_block(geometry, random_qk):
    deberta = create("deberta", geometry, buckets=8, max_distance=20)
    q, k, pos = random_qk(geometry, 30)
    whole = deberta.scores(q, k, pos, pos)
    torch.testing.assert_close(deberta.scores(q[:, :, 20:21], k[:, :, :21], pos[:, 20:21], pos[:, :21]), whole[:, :, 20:21, :21])


def test_tables_at_zero_start_as_none():
    encoding, logits = started("deberta", init="zero")
    assert encoding.starts_as == "nope" and torch.equal(logits, started("nope")[1])


@pytest.mark.parametrize("options", [{"buckets": 1}, {"max_distance": 129}, {"init": "xavier"}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("deberta", geometry, **options)
