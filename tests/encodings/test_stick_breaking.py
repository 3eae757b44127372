import math

import torch

from hf_posenc.encodings import create


def test_weights(geometry, random_qk):
    """A stick is broken from the token before the query backwards, one break at a time."""
    encoding, (q, k, pos) = create("stick_breaking", geometry), random_qk(geometry, 9)
    scores = encoding.scores(q, k, pos, pos)
    weights = encoding.normalise(scores, encoding.block(q, k, pos, pos))
    for b in range(2):
        for h in range(4):
            for i in range(9):
                left, expected = 1.0, [0.0] * 9
                for j in reversed(range(i)):
                    share = 1 / (1 + math.exp(-float(q[b, h, i] @ k[b, h // 2, j]) / math.sqrt(8)))
                    expected[j], left = left * share, left * (1 - share)
                torch.testing.assert_close(weights[b, h, i], torch.tensor(expected, dtype=torch.float64))
                assert weights[b, h, i].sum() + left - 1 < 1e-12


def test_what_is_hidden_takes_no_part(geometry, random_qk):
    encoding, (q, k, pos) = create("stick_breaking", geometry), random_qk(geometry, 9)
    seen = torch.ones(9, 9).tril().bool()
    seen[:, 2:5] = False
    some = encoding.normalise(encoding.scores(q, k, pos, pos), encoding.block(q, k, pos, pos, seen=seen[None, None]))
    kept = [0, 1, 5, 6, 7, 8]
    q, k, pos = q[:, :, kept], k[:, :, kept], pos[:, kept]
    torch.testing.assert_close(
        some[:, :, kept][..., kept], encoding.normalise(encoding.scores(q, k, pos, pos), encoding.block(q, k, pos, pos))
    )
