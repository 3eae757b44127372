import math

import pytest
import torch

from hf_posenc.encodings import create

FIRST = [13, 2, 4, 3, 1, 11, 12, 6, 10, 9, 8, 5, 0, 14, 15, 7]
LAST = [9, 15, 8, 1, 0, 7, 14, 11, 12, 4, 13, 2, 10, 5, 6, 3]


def test_scores(geometry, random_qk):
    """Applying P i and j times, one after the other."""
    encoding, (q, k, pos) = create("permuteformer", geometry), random_qk(geometry, 9)
    scores = encoding.scores(q, k, pos, pos)
    for head, i, j in ((0, 8, 3), (3, 7, 7), (2, 5, 0)):
        x, y, p = q[1, head, i], k[1, head // 2, j], encoding.permutations()[head // 2]
        for _ in range(i):
            x = x[p]
        for _ in range(j):
            y = y[p]
        decay = math.log(1 / (1 + math.exp(-2 - 3 * head / 4))) * (i - j)
        assert scores[1, head, i, j].item() == pytest.approx((x @ y / math.sqrt(8)).item() + decay, rel=1e-6)


def test_permutations_are_those_of_the_authors(tiny):
    """`generate_random_permutation` and `expand_permutation` of cpcp1998/PermuteFormer, for 4 heads of 16."""
    encoding = create("permuteformer", tiny)
    numbers = torch.arange(16.0).expand(1, 4, 1, 16)
    turned = encoding.cached_key(numbers, torch.tensor([[1]]))[0, :, 0]
    assert turned.long().tolist() == encoding.permutations().tolist()
    assert encoding.permutations()[0].tolist() == FIRST
    far = encoding.cached_key(numbers, torch.tensor([[37]]))[0, 3, 0]
    assert far.long().tolist() == LAST


def test_far_positions_cost_no_more(geometry, random_qk):
    q, k, pos = random_qk(geometry, 9)
    encoding = create("permuteformer", geometry)
    torch.testing.assert_close(encoding.scores(q, k, pos + 10**9, pos + 10**9), encoding.scores(q, k, pos, pos))
