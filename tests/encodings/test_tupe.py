import dataclasses

import pytest
import torch
from tiny import started, tiny_model
from torch.nn import functional as F

import hf_posenc
from hf_posenc.encodings import create


def authors_bias(tupe, pos, scaling):
    """abs_pos_bias of guolinke/TUPE (transformer_sentence_encoder.py) for all positions at once, [H,T,T], without its [CLS]."""
    weight = F.layer_norm(tupe.table[pos], (32,), tupe.norm.weight, tupe.norm.bias)
    pos_q = (weight @ tupe.u).view(len(pos), 4, -1).transpose(0, 1) * scaling
    pos_k = (weight @ tupe.v).view(len(pos), 4, -1).transpose(0, 1)
    return torch.bmm(pos_q, pos_k.transpose(1, 2))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("name", ["tupe", "tupe_r"])
def test_scores(geometry, random_qk, kv_heads, name):
    geometry = dataclasses.replace(geometry, num_kv_heads=kv_heads)
    tupe = create(name, geometry, max_positions=40).double()
    for parameter in tupe.parameters():
        parameter.data.normal_()
    q, k, pos = random_qk(geometry, 9)
    pos = 4 * pos
    expected = create("nope", geometry).scores(q, k, pos, pos, 16**-0.5) + authors_bias(tupe, pos[0], 16**-0.5)
    if name == "tupe_r":
        t5 = create("t5", geometry)
        t5.table.data = tupe.buckets.table.data
        expected = expected + t5.bias_matrix(pos.double(), pos.double())
    torch.testing.assert_close(tupe.scores(q, k, pos, pos, 16**-0.5), expected)


def test_rows_with_positions_of_their_own(geometry, random_qk):
    tupe, (q, k, pos) = create("tupe", geometry), random_qk(geometry, 6)
    pos = pos + torch.tensor([[0], [9]])
    both = tupe.scores(q, k, pos, pos)
    for b in range(2):
        torch.testing.assert_close(tupe.scores(q[b:][:1], k[b:][:1], pos[b:][:1], pos[b:][:1]), both[b:][:1])


def test_keys_in_the_cache_have_what_the_query_heads_need(geometry, random_qk):
    """D numbers for each of the two heads that share a key; nothing of a query is in them."""
    tupe, (_, k, pos) = create("tupe", geometry), random_qk(geometry, 6)
    stored = tupe.cached_key(k, pos)
    assert stored.shape == (2, 2, 6, 8 + 2 * 8)
    assert torch.equal(stored[..., :8], k) and torch.equal(stored[..., 8:], stored[:1, ..., 8:].expand(2, -1, -1, -1))


@pytest.mark.parametrize("name", ["tupe", "tupe_r"])
def test_starts_as_none(name):
    encoding, logits = started(name, init="zero", max_positions=20)
    assert encoding.starts_as == "nope"
    torch.testing.assert_close(logits, started("nope")[1])


def test_positions_past_the_table():
    model = hf_posenc.patch(tiny_model("llama"), "tupe", max_positions=14)
    model(torch.arange(1, 15)[None])
    with pytest.raises(ValueError, match=r'position 14 lies past the learned vectors of 14 positions. .*"tupe", max_positions=15'):
        model(torch.arange(1, 16)[None])


@pytest.mark.parametrize("options", [{"max_positions": 0}, {"init": "alibi"}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("tupe", geometry, **options)
