import math

import pytest
import torch

from hf_posenc.encodings import create


def erfinv(y):
    """By Newton's method."""
    x = 0.0
    for _ in range(200):
        x -= (math.erf(x) - y) / (2 / math.sqrt(math.pi) * math.exp(-x * x))
    return x


@pytest.mark.parametrize("axes, phi", [(2, 1.324717957244746), (3, 1.2207440846057596)])
def test_scores(geometry, random_qk, rotary_scores, axes, phi):
    """Roots of x^3 = x + 1 (the plastic number) and x^4 = x + 1; two key-value heads of four pairs have eight directions."""
    encoding, (q, k, _) = create("golden_gate", geometry, axes=axes), random_qk(geometry, 9)
    pos = torch.randint(0, 40, (axes, 1, 9), generator=torch.Generator().manual_seed(0))
    scores = encoding.scores(q, k, pos.expand(-1, 2, -1), pos.expand(-1, 2, -1))
    for group in range(2):

        def angle(i, j, group=group):
            found = []
            for pair in range(4):
                u = [erfinv(2 * ((4 * group + pair + 1) * phi ** -(a + 1) % 1) - 1) for a in range(axes)]
                along = sum(x * float(pos[a, 0, i] - pos[a, 0, j]) for a, x in enumerate(u)) / math.hypot(*u)
                found.append(along * 10_000 ** (-pair / 4))
            return found

        expected = rotary_scores(q[:, 2 * group : 2 * group + 2], k[:, group : group + 1], angle)
        torch.testing.assert_close(scores[:, 2 * group : 2 * group + 2], expected, atol=1e-5, rtol=1e-5)


def test_pairs_that_stand_still(geometry, random_qk):
    encoding, (q, _, _) = create("golden_gate", geometry, still=0.5), random_qk(geometry, 9)
    turned = encoding.turn(q, torch.full((2, 1, 9), 7))
    moved = (turned != q).all(dim=(0, 1, 2)).tolist()
    assert moved == [True, True, False, False] * 2
    with pytest.raises(ValueError, match="still"):
        create("golden_gate", geometry, still=1.5)
