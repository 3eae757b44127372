import pytest
import torch
from tiny import started

from hf_posenc.encodings import create


def test_is_the_relative_key_query_of_bert(geometry, random_qk):
    """As BertSelfAttention of transformers 4 wrote it, from a vector for each pair of positions."""
    huang = create("huang", geometry, max_distance=4)
    q, k, pos = random_qk(geometry, 9)
    keys = k.repeat_interleave(2, 1)
    pairs = huang.table.double()[(pos[0][:, None] - pos[0]).clamp(0, 4)]
    scores = q @ keys.mT + torch.einsum("bhld,lrd->bhlr", q, pairs) + torch.einsum("bhrd,lrd->bhlr", keys, pairs)
    torch.testing.assert_close(huang.scores(q, k, pos, pos), scores / 8**0.5)


def test_scores(geometry, random_qk):
    huang = create("huang", geometry, max_distance=5)
    q, k, _ = random_qk(geometry, 7)
    q_pos, k_pos = torch.randint(0, 20, (2, 7)), torch.randint(0, 20, (2, 7))  # in any order, with gaps
    scores = huang.scores(q, k, q_pos, k_pos)
    for b in range(2):
        for h in range(4):
            for i in range(7):
                for j in range(7):
                    vector = huang.table[min(max(int(q_pos[b, i] - k_pos[b, j]), 0), 5)].double()
                    x, y = q[b, h, i], k[b, h // 2, j]
                    torch.testing.assert_close(scores[b, h, i, j], (x @ y + x @ vector + y @ vector) / 8**0.5, rtol=0, atol=1e-12)


def test_vectors_at_zero_start_as_none():
    encoding, logits = started("huang", init="zero")
    assert encoding.starts_as == "nope" and torch.equal(logits, started("nope")[1])


@pytest.mark.parametrize("options", [{"max_distance": 0}, {"init": "normal"}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("huang", geometry, **options)
