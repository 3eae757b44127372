import dataclasses

import pytest
import torch
from tiny import started, tiny_model
from transformers import StaticCache

import hf_posenc
from hf_posenc.encodings import create


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("rank", [None, 3])
def test_scores(geometry, random_qk, kv_heads, rank):
    """The products of positions are not divided."""
    geometry = dataclasses.replace(geometry, num_kv_heads=kv_heads)
    diet, (q, k, _) = create("diet_abs", geometry, max_positions=40, rank=rank), random_qk(geometry, 7)
    pos = torch.randint(0, 40, (2, 7))
    scores, none = (encoding.scores(q, k, pos, pos) for encoding in (diet, create("nope", geometry)))
    for b in range(2):
        for i in range(7):
            for j in range(7):
                added = [float(diet.query_table[h, pos[b, i]].double() @ diet.key_table[h, pos[b, j]].double()) for h in range(4)]
                torch.testing.assert_close((scores - none)[b, :, i, j].tolist(), added, rtol=0, atol=1e-12)


def test_rank_of_the_vectors_is_that_of_what_they_add(geometry, random_qk):
    """Of which more than the width of a head was the point of the paper: `learned` cannot do that."""
    diet, (q, k, pos) = create("diet_abs", geometry, rank=11).double(), random_qk(geometry, 16)
    diet.query_table.data.normal_(), diet.key_table.data.normal_()
    added = diet.scores(q, k, pos, pos) - create("nope", geometry).scores(q, k, pos, pos)
    assert torch.linalg.matrix_rank(added[0, 0]) == 11 > geometry.head_dim


def test_starts_as_none():
    encoding, logits = started("diet_abs", init="zero", max_positions=20)
    assert encoding.starts_as == "nope"
    torch.testing.assert_close(logits, started("nope")[1])


def test_positions_past_the_table():
    model = hf_posenc.patch(tiny_model("llama"), "diet_abs", max_positions=14)
    with pytest.raises(ValueError, match=r'position 14 lies past the learned vectors of 14 positions. .*"diet_abs", max_positions=15'):
        model(torch.arange(1, 16)[None])


@pytest.mark.parametrize("options", [{"max_positions": 0}, {"rank": 0}, {"init": "alibi"}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("diet_abs", geometry, **options)


@torch.no_grad()
def test_a_static_cache_may_be_longer_than_the_table():
    model, ids = hf_posenc.patch(tiny_model("llama"), "diet_abs", max_positions=10), torch.arange(3, 11)[None]
    cache = StaticCache(config=model.config, max_cache_len=20)
    torch.testing.assert_close(model(ids, past_key_values=cache).logits, model(ids).logits, atol=2e-5, rtol=2e-4)
