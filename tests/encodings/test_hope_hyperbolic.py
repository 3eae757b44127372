import math

import pytest
import torch

from hf_posenc.encodings import create


@pytest.mark.parametrize("far", [0, 10**6])
def test_scores(geometry, random_qk, far):
    """With cosh and sinh of the distance, pair by pair."""
    encoding, (q, k, pos) = create("hope_hyperbolic", geometry, damping=1.5), random_qk(geometry, 9)
    scores = encoding.scores(q, k, pos + far, pos + far)
    for head, i, j in ((0, 8, 3), (3, 7, 7), (2, 5, 0)):
        expected, x, y = 0.0, q[1, head, i].tolist(), k[1, head // 2, j].tolist()
        for n in range(4):
            a, b, c, d = x[2 * n], x[2 * n + 1], y[2 * n], y[2 * n + 1]
            angle = (i - j) * 10_000 ** (-n / 4)
            boost = (a * c + b * d) * math.cosh(angle) + (a * d + b * c) * math.sinh(angle)
            expected += boost * math.exp(-1.5 * (i - j)) / math.sqrt(8)
        assert scores[1, head, i, j].item() == pytest.approx(expected, rel=1e-5)


def test_long_texts_overflow_nowhere(geometry, random_qk):
    """A thousand tokens, and two texts in a row: e^(1.1 * 1000) is no number."""
    encoding, (q, k, _) = create("hope_hyperbolic", geometry).float(), random_qk(geometry, 1000)
    q, k = q.float(), k.float()
    pos = torch.cat((torch.arange(600), torch.arange(400))).expand(2, -1)
    scores = encoding.scores(q, k, pos, pos)
    assert scores.tril().isfinite().all()
    late = encoding.scores(q[:, :, 600:], k[:, :, 600:], pos[:, 600:], pos[:, 600:])
    torch.testing.assert_close(scores[:, :, 600:, 600:].tril(), late.tril())
    assert scores[0, 0, 599, 598].abs() > 1e-3 and late[0, 0, 399, 0].abs() < 1e-9


@pytest.mark.parametrize("damping", [1.0, 0.5, 11.0])
def test_bad_damping(geometry, damping):
    with pytest.raises(ValueError, match="damping"):
        create("hope_hyperbolic", geometry, damping=damping)
