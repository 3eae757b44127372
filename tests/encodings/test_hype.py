import dataclasses
import math

import pytest
import torch

from hf_posenc.encodings import create

SLOPES = (0.5, 0.3, 0.2, 0.1)


def test_scores(geometry, random_qk):
    """The bias as the four products of exponentials that the paper writes it as."""
    hype, (q, k, pos) = create("hype", dataclasses.replace(geometry, slopes=SLOPES), reach=3), random_qk(geometry, 9)
    scores, none = (encoding.scores(q, k, pos, pos) for encoding in (hype, create("nope", geometry)))
    for h, slope in enumerate(SLOPES):
        for i in range(9):
            for j in range(i + 1):
                added = 3 * slope / 2 * (math.exp(j / 3) * math.exp(-i / 3) - math.exp(i / 3) * math.exp(-j / 3))
                torch.testing.assert_close((scores - none)[:, h, i, j], torch.full((2,), added).double(), rtol=1e-6, atol=1e-6)


def test_is_alibi_near_by(geometry):
    pos = torch.arange(100)[None].double()
    near, linear = (e.bias_matrix(pos[:, -1:], pos) for e in (create("hype", geometry, reach=1e5), create("alibi", geometry)))
    torch.testing.assert_close(near, linear, rtol=1e-6, atol=0)


def test_is_a_number_at_any_distance(geometry):
    bias = create("hype", geometry).bias_matrix(torch.tensor([[10**7]]), torch.tensor([[0, 10**7]]))
    assert bias.isfinite().all() and (bias[..., 0] < -1e20).all()


def test_bad_options(geometry):
    with pytest.raises(ValueError, match="reach"):
        create("hype", geometry, reach=0)
