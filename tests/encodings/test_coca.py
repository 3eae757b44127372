import math

import torch

from hf_posenc.encodings import Geometry, create


def expected_score(q, k, distance, pairs):
    """The key q t, turned; t is alike in the two dimensions of a pair."""
    total = 0.0
    for n, (a, b) in enumerate(pairs):
        t = max(0.0, (k[a] + k[b]) / 2)
        angle = distance * 10_000 ** (-n / 4)
        turned = q[a] * t * math.cos(angle) + q[b] * t * math.sin(angle), q[b] * t * math.cos(angle) - q[a] * t * math.sin(angle)
        total += q[a] * turned[0] + q[b] * turned[1]
    return total / math.sqrt(8)


def test_scores(geometry, random_qk):
    (q, k, pos), halves = random_qk(geometry, 9), [(n, n + 4) for n in range(4)]
    scores = create("coca", geometry).double().scores(q, k, pos + 50, pos + 50)
    assert math.isclose(scores[1, 3, 7, 2].item(), expected_score(q[1, 3, 7].tolist(), k[1, 1, 2].tolist(), 5, halves), rel_tol=1e-6)
    neighbours = Geometry(**{**vars(geometry), "interleaved": True})
    scores, pairs = create("coca", neighbours).double().scores(q, k, pos, pos), [(2 * n, 2 * n + 1) for n in range(4)]
    assert math.isclose(scores[1, 3, 7, 2].item(), expected_score(q[1, 3, 7].tolist(), k[1, 1, 2].tolist(), 5, pairs), rel_tol=1e-6)


def test_no_key_is_worse_than_none(geometry, random_qk):
    """Without a distance all scores are 0 or more: the angle between query and key is that of the positions alone."""
    q, k, pos = random_qk(geometry, 9)
    scores = create("coca", geometry).scores(q, k, torch.zeros_like(pos), torch.zeros_like(pos))
    assert (scores >= 0).all() and (scores > 0).any()
